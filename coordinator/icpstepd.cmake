# SPDX-License-Identifier: GPL-2.0-or-later
# icpstepd, the step agent, with its messages and configuration; icp-proxy. Included by CMakeLists.txt.
find_package(yaml-cpp REQUIRED)

# Standard library only: the SPANK plugin links it.
add_library(icp_protocol STATIC protocol/packet.cc)
target_link_libraries(icp_protocol PUBLIC icp_flags)
set_target_properties(icp_protocol PROPERTIES POSITION_INDEPENDENT_CODE ON)

# Messages, authentication and frames between icpctld and its peers.
find_package(OpenSSL REQUIRED)
pkg_check_modules(MUNGE REQUIRED IMPORTED_TARGET munge)
add_library(icp_net_proto STATIC)
target_sources(icp_net_proto PRIVATE protocol/coordinator.proto)
protobuf_generate(TARGET icp_net_proto LANGUAGE cpp IMPORT_DIRS ${CMAKE_CURRENT_SOURCE_DIR}
                  PROTOC_OUT_DIR ${CMAKE_CURRENT_BINARY_DIR})
target_link_libraries(icp_net_proto PUBLIC protobuf::libprotobuf)
target_include_directories(icp_net_proto SYSTEM PUBLIC ${CMAKE_BINARY_DIR} PRIVATE ${CMAKE_CURRENT_BINARY_DIR})

add_library(icp_net STATIC protocol/connection.cc protocol/coordinator_client.cc protocol/endpoint.cc protocol/frame.cc
                           protocol/munge_auth.cc protocol/slurm_errors.cc)
target_link_libraries(icp_net PUBLIC icp_flags icp_engine icp_net_proto fmt::fmt icp_asio
                      PRIVATE OpenSSL::Crypto PkgConfig::MUNGE Threads::Threads spdlog::spdlog)

target_precompile_headers(icp_net REUSE_FROM icp_coordinator)

add_library(icp_config STATIC config.cc)
target_link_libraries(icp_config PUBLIC icp_flags icp_engine icp_net PRIVATE icp_duration yaml-cpp)

add_library(icp_step_agent STATIC
            icpstepd/activity.cc icpstepd/agent_broker.cc icpstepd/batch_script.cc icpstepd/capsule_agents.cc icpstepd/capsule_layout.cc icpstepd/cgroups.cc icpstepd/coordinator_link.cc
            icpstepd/image_choice.cc icpstepd/ipc_report.cc icpstepd/ipc_watch.cc icpstepd/job_end.cc icpstepd/kept_number.cc icpstepd/launched_steps.cc icpstepd/logging.cc
            icpstepd/network_exchange.cc icpstepd/notices.cc icpstepd/pmix_link.cc icpstepd/restart.cc icpstepd/restart_dir.cc icpstepd/site_script.cc
            icpstepd/step_agent.cc icpstepd/step_agent_restart.cc icpstepd/step_agent_signals.cc
            icpstepd/step_agent_versions.cc icpstepd/versions.cc)
target_link_libraries(icp_step_agent PUBLIC icp_engine icp_config icp_protocol icp_launch icp_duration icp_asio
                                            spdlog::spdlog fmt::fmt Threads::Threads)
target_precompile_headers(icp_step_agent REUSE_FROM icp_coordinator)
if(ICP_SANITIZE)  # GCC 12 with sanitizers takes std::regex's own variables for uninitialised
  target_compile_options(icp_step_agent PRIVATE -Wno-maybe-uninitialized)
endif()

add_executable(icpstepd icpstepd/main.cc)
target_link_libraries(icpstepd PRIVATE icp_step_agent CLI11::CLI11)
target_precompile_headers(icpstepd REUSE_FROM icp_coordinator)

# Between the tasks of a step and Slurm's PMIx server or its process manager of PMI-1. A process of the job, saved with it: small.
add_library(icp_pmix_relay STATIC pmix/message.cc pmix/peer_check.cc pmix/relay.cc pmi/relay.cc)
target_link_libraries(icp_pmix_relay PUBLIC icp_flags icp_protocol)

# How srun is called for an MPI launcher of a batch script, beside what is saved.
add_library(icp_launch STATIC launch/agent_socket.cc launch/launcher.cc launch/request.cc launch/stand_in.cc)
target_link_libraries(icp_launch PUBLIC icp_flags icp_protocol)

# Started before the task's program in place of it: small, and quick to start.
add_executable(icp-proxy icpstepd/icp_proxy.cc)
target_link_libraries(icp-proxy PRIVATE icp_flags icp_protocol icp_pmix_relay icp_launch)
target_link_options(icp-proxy PRIVATE -static-libstdc++ -static-libgcc)

# What a batch script finds as srun.
add_custom_command(TARGET icp-proxy POST_BUILD COMMAND ${CMAKE_COMMAND} -E make_directory launch
                   COMMAND ${CMAKE_COMMAND} -E create_symlink ../icp-proxy launch/srun
                   WORKING_DIRECTORY $<TARGET_FILE_DIR:icp-proxy>)

install(TARGETS icpstepd icp-proxy RUNTIME DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/slurm-icp)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/launch/srun DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/slurm-icp/launch)
install(FILES ${CMAKE_SOURCE_DIR}/docs/man/icp.yaml.5 DESTINATION ${CMAKE_INSTALL_MANDIR}/man5)
install(FILES ${CMAKE_SOURCE_DIR}/docs/man/spank_icp.8 DESTINATION ${CMAKE_INSTALL_MANDIR}/man8)
