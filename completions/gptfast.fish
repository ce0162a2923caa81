# Completion of gptfast in fish. In ~/.config/fish/config.fish:  gptfast --show-completion fish | source
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
