# SPDX-License-Identifier: GPL-2.0-or-later
# icp doctor and icp setup. Included by CMakeLists.txt.
add_library(icp_doctor STATIC icp/doctor/diagnosis.cc icp/doctor/directory_checks.cc icp/doctor/host.cc icp/doctor/install_checks.cc
                              icp/doctor/kernel_checks.cc icp/doctor/plugin_facts.cc icp/doctor/service_checks.cc icp/doctor/setup.cc
                              icp/doctor/slurm_checks.cc icp/doctor/slurm_files.cc icp/doctor/system_checks.cc icp/doctor/try_run.cc)
target_link_libraries(icp_doctor PUBLIC icp_coordinator icp_config icp_net)
target_compile_definitions(icp_doctor PUBLIC ICP_LIBEXEC_DIR="${ICP_LIBEXEC_DIR}" ICP_SLURM_PLUGIN_DIR="${ICP_SLURM_PLUGIN_DIR}")
target_precompile_headers(icp_doctor REUSE_FROM icp_coordinator)
target_sources(icp PRIVATE icp/doctor/doctor_command.cc)
target_link_libraries(icp PRIVATE icp_doctor)
