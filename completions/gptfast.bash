# Completion of gptfast in bash 4.0 and later. In ~/.bashrc:  source <(gptfast --show-completion bash)

_gptfast() {
    local line=${COMP_LINE:0:COMP_POINT} paths value
    COMPREPLY=()
    if [[ $3 == *[\<\>] ]]; then # the target of a redirection
        compopt -o default
        return
    fi
    {
        read -r paths
        while IFS=$'\t' read -r value _; do
            # what stands in an open quote is not quoted once more
            [[ ${line%"$2"} == *[\"\'] ]] || printf -v value %q "$value"
            COMPREPLY+=("$value")
        done
    } < <(_GPTFAST_COMPLETE=$line "${1/#\~\//$HOME/}" "$2" 2>/dev/null </dev/null)
    case $paths in
        files) compopt -o default ;;
        folders)
            compopt -o dirnames
            # bash lists values by what follows their last slash once there are folders among them
            [[ $2 ]] && compopt -o plusdirs
            ;;
    esac
}

complete -F _gptfast gptfast
