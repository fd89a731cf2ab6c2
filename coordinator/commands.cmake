# SPDX-License-Identifier: GPL-2.0-or-later
# The commands that talk to icpctld, and the front end of scontrol. Included by CMakeLists.txt.
include(CheckLinkerFlag)

# What icp asks icpctld, and how it shows the answers.
add_library(
  icp_job_client STATIC
  icp/history_text.cc
  icp/job_client.cc
  icp/job_id.cc
  icp/report_html.cc
  icp/scontrol_command.cc
  icp/scontrol_grammar.cc
  icp/step_json.cc
  icp/step_text.cc)
target_link_libraries(icp_job_client PUBLIC icp_coordinator icp_config icp_net)
target_precompile_headers(icp_job_client REUSE_FROM icp_coordinator)
target_sources(icp PRIVATE icp/drain_command.cc icp/job_commands.cc icp/job_operation.cc icp/report_command.cc)
target_link_libraries(icp PRIVATE icp_job_client)

# The front end stands before every call of scontrol. What it costs is the start of a program: 0.1 ms with musl, linked
# statically, 0.25 ms with a static glibc, more with a dynamic one. So the first of these that is there.
find_program(ICP_MUSL_GCC musl-gcc)
check_linker_flag(C -static ICP_HAVE_STATIC_LIBC)
set(ICP_SCONTROL ${CMAKE_CURRENT_BINARY_DIR}/scontrol)
set(ICP_SCONTROL_SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/scontrol/scontrol.c ${CMAKE_CURRENT_SOURCE_DIR}/scontrol/find_program.c)
if(ICP_MUSL_GCC AND NOT ICP_SANITIZE)
  add_custom_command(
    OUTPUT ${ICP_SCONTROL}
    COMMAND ${ICP_MUSL_GCC} -O2 -static -std=c11 -D_GNU_SOURCE -Wall -Wextra -Wshadow $<$<BOOL:${ICP_WERROR}>:-Werror>
            -DICP_BIN_DIR="${CMAKE_INSTALL_FULL_BINDIR}" -I${CMAKE_SOURCE_DIR} -o ${ICP_SCONTROL} ${ICP_SCONTROL_SOURCES}
    DEPENDS ${ICP_SCONTROL_SOURCES} scontrol/find_program.h
    VERBATIM)
  add_custom_target(icp_scontrol ALL DEPENDS ${ICP_SCONTROL})
else()
  add_executable(icp_scontrol ${ICP_SCONTROL_SOURCES})
  set_target_properties(icp_scontrol PROPERTIES OUTPUT_NAME scontrol)
  target_link_libraries(icp_scontrol PRIVATE icp_flags)
  target_compile_definitions(icp_scontrol PRIVATE ICP_BIN_DIR="${CMAKE_INSTALL_FULL_BINDIR}")
  if(ICP_HAVE_STATIC_LIBC AND NOT ICP_SANITIZE)
    target_link_options(icp_scontrol PRIVATE -static)
  endif()
endif()

install(FILES ${CMAKE_SOURCE_DIR}/docs/man/scontrol-checkpoint.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
# In a directory of its own: which scontrol people get is the administrator's choice (scontrol-checkpoint(1)).
install(PROGRAMS ${ICP_SCONTROL} DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/slurm-icp/bin)
