# SPDX-License-Identifier: GPL-2.0-or-later
# fish completion for icp(1)

set -l commands run watch checkpoint restart check list show verify diff compact prune create vacate requeue move drain enable disable jobs status history report ipc doctor setup
set -l of_jobs create vacate requeue move restart enable disable status history ipc
set -l of_images list show verify diff compact prune

function __icp_jobs
    set -l whose --me
    test (id -u) = 0; and set whose
    set -l states R,CG,S
    __fish_seen_subcommand_from restart; and set states CA,CD,F,NF,PR,TO
    squeue -h -o '%A%t%j' -t $states $whose 2>/dev/null | string replace -r '^(\d+)[A-Z]+' '$1\t'
end

function __icp_first --inherit-variable commands
    not __fish_seen_subcommand_from $commands
end

complete -c icp -f
complete -c icp -s v -l verbose -d 'Report what is done'
complete -c icp -l help -d 'Print help'
complete -c icp -n __icp_first -l version -d 'Print the release'
complete -c icp -n __icp_first -a run -d 'Start a program and take versions of it'
complete -c icp -n __icp_first -a watch -d 'Take versions of a running tree'
complete -c icp -n __icp_first -a checkpoint -d 'Take one version of a running tree'
complete -c icp -n __icp_first -a restart -d 'Put a tree or a job back'
complete -c icp -n __icp_first -a check -d 'Report what would prevent a checkpoint'
complete -c icp -n __icp_first -a list -d 'List versions'
complete -c icp -n __icp_first -a show -d 'Show what a version holds'
complete -c icp -n __icp_first -a verify -d 'Check every byte'
complete -c icp -n __icp_first -a diff -d 'Compare two versions'
complete -c icp -n __icp_first -a compact -d 'Fold versions into one'
complete -c icp -n __icp_first -a prune -d 'Remove old versions'
complete -c icp -n __icp_first -a create -d 'Take a version of a job'
complete -c icp -n __icp_first -a vacate -d 'Take a version, then end the job'
complete -c icp -n __icp_first -a requeue -d 'Take a version, then requeue the job'
complete -c icp -n __icp_first -a move -d 'Take a version, then requeue the job elsewhere'
complete -c icp -n __icp_first -a drain -d 'Drain nodes, and requeue their jobs'
complete -c icp -n __icp_first -a enable -d 'Allow versions of a job'
complete -c icp -n __icp_first -a disable -d 'Forbid versions of a job'
complete -c icp -n __icp_first -a jobs -d 'List steps'
complete -c icp -n __icp_first -a status -d 'All about steps'
complete -c icp -n __icp_first -a history -d 'The runs of a job'
complete -c icp -n __icp_first -a report -d 'A page about a job or an image'
complete -c icp -n __icp_first -a ipc -d 'System V objects of jobs'
complete -c icp -n __icp_first -a doctor -d 'Say what this machine lacks'
complete -c icp -n __icp_first -a setup -d 'Make Slurm load the plugin'

complete -c icp -n "__fish_seen_subcommand_from $of_jobs; and not __fish_seen_subcommand_from setup" -a '(__icp_jobs)'
complete -c icp -n "__fish_seen_subcommand_from $of_images" -a '(__fish_complete_directories)'
complete -c icp -n '__fish_seen_subcommand_from setup; and not __fish_seen_subcommand_from enable disable' -a 'enable disable'

set -l takes '__fish_seen_subcommand_from run watch checkpoint restart'
complete -c icp -n "$takes doctor" -l dir -xa '(__fish_complete_directories)' -d 'Directory of the versions'
complete -c icp -n '__fish_seen_subcommand_from run watch restart' -l interval -xa '30s 1m 10m 1h' -d 'Time between versions'
complete -c icp -n '__fish_seen_subcommand_from watch checkpoint check' -l pid -xa '(__fish_complete_pids)' -d 'Root of the tree'
complete -c icp -n '__fish_seen_subcommand_from watch' -l count -x -d 'Number of versions'
complete -c icp -n '__fish_seen_subcommand_from checkpoint' -l kill -d 'Kill the tree then'
complete -c icp -n '__fish_seen_subcommand_from run restart doctor' -l user -xa '(__fish_complete_users)' -d 'As this user'
complete -c icp -n "$takes compact prune" -l keep -x -d 'Newest versions that stay'
complete -c icp -n "$takes compact" -l compression -xa 'none lz4 zstd' -d 'Of page data'
complete -c icp -n $takes -l dedup -d 'Leave out what is as before'
complete -c icp -n $takes -l no-precopy -d 'Copy in the stop alone'
complete -c icp -n $takes -l tracker -xa 'auto kernel-module userfaultfd soft-dirty everything' -d 'How written pages are found'
complete -c icp -n $takes -l external-tcp -xa 'refuse reset' -d 'Connections that lead out'
complete -c icp -n "$takes $of_images" -l node -x -d 'Name of the node'
complete -c icp -n '__fish_seen_subcommand_from restart show verify' -l version -x -d 'The version'
complete -c icp -n '__fish_seen_subcommand_from restart' -l detach -d 'Do not wait'
complete -c icp -n '__fish_seen_subcommand_from restart' -l lazy -d 'Memory comes when it is touched'
complete -c icp -n '__fish_seen_subcommand_from restart' -l pid-file -r -d 'For the pid'
complete -c icp -n '__fish_seen_subcommand_from restart' -l grown -xa 'truncate fail accept' -d 'Files that grew'
complete -c icp -n '__fish_seen_subcommand_from restart' -l address -x -d 'OLD=NEW'
complete -c icp -n '__fish_seen_subcommand_from restart' -l map-path -x -d 'OLD=NEW'
complete -c icp -n '__fish_seen_subcommand_from restart' -l stick-to-nodes -d 'On the same nodes'
complete -c icp -n '__fish_seen_subcommand_from diff' -l from -x -d 'A version'
complete -c icp -n '__fish_seen_subcommand_from diff' -l to -x -d 'A version'
complete -c icp -n '__fish_seen_subcommand_from create vacate requeue move restart' -l image-dir -xa '(__fish_complete_directories)' -d 'Directory of the versions'
complete -c icp -n '__fish_seen_subcommand_from create vacate requeue move' -l max-wait -x -d 'Give up after'
complete -c icp -n '__fish_seen_subcommand_from create vacate requeue move' -l wait -d 'Until it is there'
complete -c icp -n '__fish_seen_subcommand_from jobs status history ipc' -l watch -d 'Refresh every second'
complete -c icp -n '__fish_seen_subcommand_from move' -l nodes -x -d 'Where it is to run'
complete -c icp -n '__fish_seen_subcommand_from report' -s o -l output -r -d 'The page'
complete -c icp -n '__fish_seen_subcommand_from drain' -l reason -x -d 'Why'
complete -c icp -n '__fish_seen_subcommand_from status' -l versions -x -d 'At most'
complete -c icp -n "__fish_seen_subcommand_from $of_jobs $of_images jobs drain checkpoint check doctor" -l json -d 'Print JSON'
complete -c icp -n "__fish_seen_subcommand_from $of_jobs jobs drain doctor setup" -l config -r -d 'icp.yaml'
complete -c icp -n '__fish_seen_subcommand_from doctor' -l role -xa 'node login coordinator alone' -d 'What this machine is'
complete -c icp -n '__fish_seen_subcommand_from doctor' -l try -d 'Checkpoint, kill, restart'
complete -c icp -n '__fish_seen_subcommand_from doctor setup' -l slurm-conf -r -d 'slurm.conf'
complete -c icp -n '__fish_seen_subcommand_from doctor setup' -l root -xa '(__fish_complete_directories)' -d 'Files are below'
complete -c icp -n '__fish_seen_subcommand_from setup' -l plugin -r -d 'The plugin'
complete -c icp -n '__fish_seen_subcommand_from setup' -l icpstepd -r -d 'The step agent'
complete -c icp -n '__fish_seen_subcommand_from setup' -l required -d 'Without it no job runs'
complete -c icp -n '__fish_seen_subcommand_from setup' -l force -d 'Whatever is missing'
