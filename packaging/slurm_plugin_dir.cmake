# SPDX-License-Identifier: GPL-2.0-or-later
# ICP_SLURM_PLUGIN_DIR: where the Slurm that is installed looks for plugins. Asked of its pkg-config file where there is
# one, else of its packages: the directory that has Slurm's own plugins or libslurmfull.so.
if(NOT ICP_SLURM_PLUGIN_DIR)
  find_program(ICP_PKG_CONFIG pkg-config)
  if(ICP_PKG_CONFIG)
    execute_process(COMMAND ${ICP_PKG_CONFIG} --variable=plugindir slurm OUTPUT_VARIABLE found ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  endif()
  if(NOT found)
    find_path(ICP_SLURM_FULL_DIR NAMES libslurmfull.so auth_munge.so PATHS /usr/lib /usr/lib64 /usr/local/lib /opt/slurm/lib
              PATH_SUFFIXES ${CMAKE_LIBRARY_ARCHITECTURE}/slurm-wlm ${CMAKE_LIBRARY_ARCHITECTURE}/slurm slurm-wlm slurm
              NO_DEFAULT_PATH)
    if(ICP_SLURM_FULL_DIR)
      set(found ${ICP_SLURM_FULL_DIR})
    endif()
  endif()
  if(NOT found)
    set(found ${CMAKE_INSTALL_FULL_LIBDIR}/slurm-wlm)
  endif()
  set(ICP_SLURM_PLUGIN_DIR ${found} CACHE STRING "Where Slurm looks for plugins" FORCE)
endif()
