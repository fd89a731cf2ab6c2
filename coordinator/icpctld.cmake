# SPDX-License-Identifier: GPL-2.0-or-later
# icpctld, the coordinator. Included by CMakeLists.txt.
pkg_check_modules(SQLITE REQUIRED IMPORTED_TARGET sqlite3)
pkg_check_modules(SYSTEMD REQUIRED IMPORTED_TARGET libsystemd)
find_path(SLURM_INCLUDE_DIR slurm/slurm.h REQUIRED)
find_library(SLURM_LIBRARY slurm REQUIRED)

add_library(icp_ctld STATIC icpctld/catalog.cc icpctld/connection_ends.cc icpctld/fair_queue.cc icpctld/listener.cc icpctld/metrics.cc icpctld/moments.cc icpctld/requests.cc icpctld/requests_views.cc icpctld/rest.cc icpctld/rest_request.cc icpctld/restart.cc icpctld/round.cc icpctld/server.cc icpctld/slurm_jobs.cc
                            icpctld/steps.cc icpctld/steps_rounds.cc icpctld/time_limits.cc)
target_include_directories(icp_ctld SYSTEM PRIVATE ${SLURM_INCLUDE_DIR})
target_link_libraries(icp_ctld PUBLIC icp_config icp_net icp_protocol spdlog::spdlog Threads::Threads
                      PRIVATE PkgConfig::SQLITE ${SLURM_LIBRARY} icp_job_client)

# Their own names for what others call the same.
set_source_files_properties(icpctld/rest.cc icpctld/rest_request.cc PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
target_precompile_headers(icp_ctld REUSE_FROM icp_coordinator)

add_executable(icpctld icpctld/main.cc)
target_link_libraries(icpctld PRIVATE icp_ctld CLI11::CLI11 PkgConfig::SYSTEMD)
target_precompile_headers(icpctld REUSE_FROM icp_coordinator)

install(TARGETS icpctld RUNTIME DESTINATION ${CMAKE_INSTALL_SBINDIR})
install(FILES ${CMAKE_SOURCE_DIR}/docs/man/icpctld.8 DESTINATION ${CMAKE_INSTALL_MANDIR}/man8)
