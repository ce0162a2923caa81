# Completion of gptfast in PowerShell. In $PROFILE:
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
