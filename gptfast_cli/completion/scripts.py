"""The scripts that make a shell ask the program; `gptfast --show-completion SHELL` prints one."""

from enum import StrEnum
from pathlib import Path


class Shell(StrEnum):
    """The shells that have a script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


FILE_NAMES = {
    Shell.BASH: "gptfast.bash",
    Shell.ZSH: "_gptfast",
    Shell.FISH: "gptfast.fish",
    Shell.POWERSHELL: "gptfast.ps1",
}
"""What each script is called where shells look for them; zsh and fish go by these names."""


def write_scripts(folder: Path) -> None:
    """Write every script into a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for shell, script in SCRIPTS.items():
        (folder / FILE_NAMES[shell]).write_text(script, encoding="utf-8", newline="\n")


_BASH = r"""# Completion of gptfast in bash 4.0 and later. In ~/.bashrc:  source <(gptfast --show-completion bash)

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
"""

_ZSH = r"""#compdef gptfast
# Completion of gptfast in zsh. In ~/.zshrc:  source <(gptfast --show-completion zsh)
# or, as a file named _gptfast, in any folder of $fpath.

_gptfast() {
    local question="$words[1,CURRENT-1] $IPREFIX$QIPREFIX$PREFIX" found=1 line value help
    local -a answer values
    answer=("${(@f)$(_GPTFAST_COMPLETE=$question ${~${(Q)words[1]}} 2>/dev/null </dev/null)}")
    for line in $answer[2,-1]; do
        value=${line%%$'\t'*} help=${line#*$'\t'}
        values+=("${${value//\\/\\\\}//:/\\:}${help:+:$help}")
    done
    _describe -t values value values && found=0
    compset -P '--*='
    case $answer[1] in
        files) _files && found=0 ;;
        folders) _path_files -/ && found=0 ;;
    esac
    return found
}

if [[ $funcstack[1] == _gptfast ]]; then
    _gptfast "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }
    compdef _gptfast gptfast
fi
"""

_FISH = r"""# Completion of gptfast in fish. In ~/.config/fish/config.fish:  gptfast --show-completion fish | source
# or, as a file, in ~/.config/fish/completions/

function __gptfast_complete
    set -l program (commandline -opc | string replace -r '^~/' "$HOME/")[1]
    set -l answer (env _GPTFAST_COMPLETE=(commandline -cp | string collect) $program 2>/dev/null </dev/null)
    set -l word (commandline -ct)
    set -l option (string match -r -- '^--[^=]+=' $word)
    set -l path (string replace -- "$option" '' $word)
    printf '%s\n' $answer[2..-1]
    switch "$answer[1]"
        case files
            printf "$option%s\n" (__fish_complete_path $path)
        case folders
            printf "$option%s\n" (__fish_complete_directories $path '')
    end
end

complete --command gptfast --no-files --arguments '(__gptfast_complete)'
"""

_POWERSHELL = r"""# Completion of gptfast in PowerShell. In $PROFILE:
#   gptfast --show-completion powershell | Out-String | Invoke-Expression

Register-ArgumentCompleter -Native -CommandName gptfast -ScriptBlock {
    param($word, $command, $cursor)
    $words = @($command.CommandElements | Where-Object { $_.Extent.EndOffset -lt $cursor } |
        ForEach-Object { if ($_.Value -is [string]) { $_.Value } else { $_.Extent.Text } })
    $quoted = $words + $word.Trim("'", '"') | ForEach-Object { "'" + $_.Replace("'", "'\''") + "'" }
    try {
        $env:_GPTFAST_COMPLETE = $quoted -join ' '
        $paths, $values = & $words[0] 2>$null
    } catch {
        return
    } finally {
        Remove-Item Env:_GPTFAST_COMPLETE
    }
    foreach ($line in $values) {
        $value, $help = $line -split "`t", 2
        $text = if ($value -match '[^\w./:=@+-]') { "'" + $value.Replace("'", "''") + "'" } else { $value }
        if (-not $help) { $help = $value }
        [System.Management.Automation.CompletionResult]::new($text, $value, 'ParameterValue', $help)
    }
    # PowerShell offers paths where there is no answer at all, and nothing where the answer is an empty string
    if (-not $values -and $paths -eq 'none') { '' }
}
"""

SCRIPTS = {Shell.BASH: _BASH, Shell.ZSH: _ZSH, Shell.FISH: _FISH, Shell.POWERSHELL: _POWERSHELL}
"""Each script's text."""
