# SPDX-License-Identifier: GPL-2.0-or-later
# bash completion for icp(1)                                  -*- shell-script -*-

_icp_words() {
    case $1 in
        run) echo --dir --interval --user --keep --checkpoint-files --dedup --compression --no-precopy --node --tracker --external-tcp --verbose --help -- ;;
        watch) echo --dir --interval --pid --count --keep --checkpoint-files --dedup --compression --no-precopy --node --tracker --external-tcp --verbose --help ;;
        checkpoint) echo --dir --pid --kill --json --keep --checkpoint-files --dedup --compression --no-precopy --node --tracker --external-tcp --verbose --help ;;
        create | vacate | requeue) echo --image-dir --max-wait --wait --json --config --verbose --help ;;
        move) echo --nodes --image-dir --max-wait --wait --json --config --verbose --help ;;
        drain) echo --reason --json --config --verbose --help ;;
        enable | disable) echo --json --config --help ;;
        report) echo --output --node --config --help ;;
        jobs | ipc | history) echo --watch --json --config --help ;;
        status) echo --versions --watch --json --config --help ;;
        restart) echo --image-dir --stick-to-nodes --json --config --dir --version --interval --detach --lazy --keep --checkpoint-files --dedup --compression --no-precopy --pid-file --changed-files --user --node --tracker --external-tcp --verbose --help ;;
        check) echo --pid --json --help ;;
        list) echo --node --version --json --help ;;
        show) echo --version --node --json --verbose --help ;;
        verify) echo --version --node --help ;;
        diff) echo --from --to --node --json --help ;;
        compact) echo --keep --compression --node --json --help ;;
        prune) echo --keep --node --json --help ;;
        doctor) echo --role --try --dir --user --json --config --slurm-conf --root --help ;;
        setup) echo enable disable --help ;;
        enable-plugin) echo --plugin --icpstepd --required --force --config --slurm-conf --root --help ;;
        disable-plugin) echo --slurm-conf --root --help ;;
        *)
            echo run watch checkpoint restart check list show verify diff compact prune create vacate requeue move drain enable disable jobs status history report ipc doctor setup \
                --verbose --version --help
            ;;
    esac
}

# Jobs of Slurm: the user's own, or all for root; those that run, and with "restart" those that have ended.
_icp_jobs() {
    local states=R,CG,S whose=(--me)
    [[ $1 == restart ]] && states=CA,CD,F,NF,PR,TO
    ((EUID == 0)) && whose=()
    squeue -h -o %A -t "$states" "${whose[@]}" 2>/dev/null
}

# Numbers of the versions in the directory that the line names.
_icp_versions() {
    local i dir
    for ((i = 1; i < COMP_CWORD; i++)); do
        [[ ${COMP_WORDS[i]} == --dir ]] && dir=${COMP_WORDS[i + 1]}
        [[ ${COMP_WORDS[i]} != -* && -d ${COMP_WORDS[i]} ]] && dir=${COMP_WORDS[i]}
    done
    [[ -n $dir ]] && find "$dir" -maxdepth 1 -name 'v[0-9]*' -printf '%f\n' 2>/dev/null | sed 's/^v0*//'
}

_icp() {
    local cur prev command='' i
    cur=${COMP_WORDS[COMP_CWORD]}
    prev=${COMP_WORDS[COMP_CWORD - 1]}
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        if [[ ${COMP_WORDS[i]} == -- ]]; then  # the program's own words
            if declare -F _command_offset >/dev/null; then _command_offset $((i + 1)); fi
            return
        fi
        [[ $command == setup && ${COMP_WORDS[i]} == @(enable|disable) ]] && command=${COMP_WORDS[i]}-plugin
        [[ -z $command && ${COMP_WORDS[i]} != -* ]] && command=${COMP_WORDS[i]}
    done

    case $prev in
        --dir | --image-dir | --root) mapfile -t COMPREPLY < <(compgen -d -- "$cur") && compopt -o filenames ;;
        --pid-file | --config | --slurm-conf | --plugin | --icpstepd) mapfile -t COMPREPLY < <(compgen -f -- "$cur") && compopt -o filenames ;;
        --user) mapfile -t COMPREPLY < <(compgen -u -- "$cur") ;;
        --tracker) mapfile -t COMPREPLY < <(compgen -W 'auto kernel-module userfaultfd soft-dirty everything' -- "$cur") ;;
        --role) mapfile -t COMPREPLY < <(compgen -W 'node login coordinator alone' -- "$cur") ;;
        --checkpoint-files) mapfile -t COMPREPLY < <(compgen -W 'none open' -- "$cur") ;;
        --changed-files) mapfile -t COMPREPLY < <(compgen -W 'restore refuse accept' -- "$cur") ;;
        --version | --from | --to) mapfile -t COMPREPLY < <(compgen -W "$(_icp_versions)" -- "$cur") ;;
        --pid) mapfile -t COMPREPLY < <(compgen -W "$(ps -e -o pid=)" -- "$cur") ;;
        --interval | --max-wait) mapfile -t COMPREPLY < <(compgen -W '30s 1m 10m 1h' -- "$cur") ;;
        --count | --keep | --node | --versions) ;;
        --compression) mapfile -t COMPREPLY < <(compgen -W 'none lz4 zstd' -- "$cur") ;;
        *)
            mapfile -t COMPREPLY < <(compgen -W "$(_icp_words "$command")" -- "$cur")
            if [[ $cur != -* && $command == @(list|show|verify|diff|compact|prune) ]]; then
                mapfile -t COMPREPLY < <(compgen -d -- "$cur") && compopt -o filenames
            elif [[ $cur != -* && $command == @(create|vacate|requeue|move|restart|enable|disable|status|history|ipc) ]]; then
                mapfile -t COMPREPLY < <(compgen -W "$(_icp_jobs "$command")" -- "$cur")
            fi
            ;;
    esac
}

complete -F _icp icp
