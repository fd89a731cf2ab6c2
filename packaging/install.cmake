# SPDX-License-Identifier: GPL-2.0-or-later
# Where things go, and all files that are not compiled. "cmake --install" does what the packages do; it enables nothing
# (icp setup enable does).
#
# Programs, manual pages and completions: by GNUInstallDirs, below the prefix. The plugin: where Slurm looks for it.
# Configuration: /etc, which every program of ours has built in; below the prefix where that is neither /usr nor
# /usr/local, so that a user without root can install a tree to look at.
set(ICP_LIBEXEC_DIR ${CMAKE_INSTALL_FULL_LIBEXECDIR}/slurm-icp)  # icpstepd, icp-proxy, icp-init
set(ICP_ZSH_DIR "${CMAKE_INSTALL_DATADIR}/zsh/site-functions" CACHE STRING "Where zsh looks for completions")
set(ICP_SYSTEMD_UNIT_DIR "lib/systemd/system" CACHE STRING "Where systemd looks for units")
if(CMAKE_INSTALL_PREFIX MATCHES "^/usr(/local)?/?$")
  set(ICP_ETC_DIR /etc)
  set(ICP_SPANK_DESTINATION ${ICP_SLURM_PLUGIN_DIR})
else()
  set(ICP_ETC_DIR ${CMAKE_INSTALL_SYSCONFDIR})
  set(ICP_SPANK_DESTINATION ${CMAKE_INSTALL_LIBDIR}/slurm)
endif()

configure_file(packaging/systemd/icpctld.service.in ${CMAKE_BINARY_DIR}/icpctld.service @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/icpctld.service DESTINATION ${ICP_SYSTEMD_UNIT_DIR})
install(FILES packaging/systemd/tmpfiles.conf RENAME slurm-icp.conf DESTINATION lib/tmpfiles.d)
install(FILES packaging/systemd/sysusers.conf RENAME slurm-icp.conf DESTINATION lib/sysusers.d)
install(FILES packaging/systemd/logrotate.conf RENAME slurm-icp DESTINATION ${ICP_ETC_DIR}/logrotate.d)

# An administrator's file stays. The prefix may be another one when it is installed.
set(icp_etc ${ICP_ETC_DIR})
if(NOT IS_ABSOLUTE ${icp_etc})
  set(icp_etc "\${CMAKE_INSTALL_PREFIX}/${ICP_ETC_DIR}")
endif()
install(CODE "
  if(EXISTS \"\$ENV{DESTDIR}${icp_etc}/slurm-icp/icp.yaml\")
    message(STATUS \"Left alone: ${icp_etc}/slurm-icp/icp.yaml\")
  else()
    file(INSTALL \"${CMAKE_SOURCE_DIR}/config/icp.yaml\" DESTINATION \"${icp_etc}/slurm-icp\")
  endif()")
