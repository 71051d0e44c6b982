# Serve on Windows: sets up .venv on the first run, then runs `img2img serve` with the given arguments.
#   powershell -ExecutionPolicy Bypass -File scripts\serve.ps1 --port 8001
# As scripts/serve does it, but it has not been tried on Windows: please tell what does not work.
$ErrorActionPreference = "Stop"
$CalledFrom = Get-Location
Set-Location (Split-Path -Parent $PSScriptRoot)
$Python = ".venv\Scripts\python.exe"
$Command = Join-Path (Get-Location) ".venv\Scripts\img2img.exe"

function Invoke-Checked {
    & $args[0] $args[1..($args.Length - 1)]
    if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
}

function Install-Packages {
    Invoke-Checked $Python -m pip install --disable-pip-version-check --no-compile @args
}

# The folder too: of a checkout that was moved the commands name the old place.
$Text = (@(Get-Location) + (Get-Content requirements.lock, pyproject.toml, scripts\serve.ps1 -Raw)) -join ""
$Bytes = [Text.Encoding]::UTF8.GetBytes($Text)
$Hash = [BitConverter]::ToString([Security.Cryptography.SHA256]::Create().ComputeHash($Bytes))
$Stamp = ".venv\.installed-" + $Hash.Replace("-", "").Substring(0, 16)

if (-not (Test-Path $Stamp)) {
    # pip too: what was cut off while .venv was made is made anew.
    if (-not (Test-Path .venv\Scripts\pip.exe)) {
        py -3 -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))"
        if ($LASTEXITCODE -ne 0) {
            Write-Host "Python 3.11 to 3.14 is needed; py -3 is another one, or there is none."
            exit 2
        }
        Write-Host "Making .venv ..."
        Invoke-Checked py -3 -m venv --clear .venv
    }
    Remove-Item .venv\.installed-*
    Write-Host "Installing the pinned dependencies, once: minutes, most of them torch's download ..."
    $Torch = [regex]::Match((Get-Content pyproject.toml -Raw), "torch==[0-9.]+").Value
    Install-Packages --no-deps $Torch
    Install-Packages --no-deps --require-hashes -r requirements.lock
    Install-Packages $Torch
    Install-Packages --no-deps --editable .
    New-Item -ItemType File $Stamp | Out-Null
}
Set-Location $CalledFrom  # where the paths among the arguments are from
& $Command serve @args
exit $LASTEXITCODE
