"""What a tool call worked on, in one word from a closed list: a program or a file extension.

A command line and a path are content and never kept. The first word of a command is kept only if it is a program
that everybody has heard of, an extension only if it is a common one; everything else is `other`, because a word
that a user made up can be a secret (`./deploy-acme-merger.sh`, `notes.hunter2`).
"""

from __future__ import annotations

import re

from metricsd.decode.names import OTHER

_COMMAND_CHARS_MAX = 4096
_WRAPPERS_MAX = 8

PROGRAMS = frozenset(
    """
    7z act ag alembic ansible ansible-playbook apk apt apt-get aptitude ar asdf at awk aws az base64 basename bash bat
    bazel bc black brew bun bundle bunx bzip2 cal cargo cat cd celery chgrp chmod chown clang clang-format clang++
    clear cloc cmake cmp codex column comm composer conda cp cpio crontab csc ctags curl cut cypress dart date dd
    deno df diff dig dirname django-admin dnf docker docker-compose doctl dotnet dpkg du echo egrep elixir emacs
    erl eslint exa exit expect export expr eza false fastlane fd ffmpeg fgrep file find firebase fish flake8 flask flutter
    fly fmt fold free fzf g++ gcc gcloud gdb gem gemini gh ghc git gitleaks glab go gofmt golangci-lint gradle gradlew
    grep groups gulp gunicorn gunzip gzip head helm heroku hexdump hg history host hostname htop http httpie id
    ifconfig info initdb ip isort java javac jest jobs join journalctl jq julia just k9s kill killall kotlinc kubectl
    kustomize launchctl ld ldd less lldb ln locate ls lsof lua make man md5sum meson mix mkdir mkfifo mktemp mocha mongo
    mongosh more mount mv mvn mypy mysql mysqldump nano nc netlify netstat next nginx ninja nix nl nm node nox npm npx
    nslookup nvim nvm objdump od open openssl opam pandoc parallel patch pdm perl pg_dump pg_restore pgrep phpunit php
    ping pip pip3 pipenv pipx pkill playwright pnpm podman poetry popd postgres pre-commit prettier printenv printf
    prisma ps psql pstree pushd pulumi pwd pwsh pyenv pylint pyright pytest python python2 python3 r rails rake rbenv rclone
    read readlink realpath redis-cli rg rm rmdir rollup rsync rubocop ruby ruff runghc rustc rustfmt rustup sbt scala
    scp screen sed semgrep seq serverless service set sftp sh sha1sum sha256sum shasum shellcheck shuf sleep sort
    source split sqlite3 ss ssh ssh-keygen stat strace strings su supabase svn swift systemctl tac tail tar task tee
    terraform test tig tmux top touch tox tr traceroute tree trivy true truncate ts-node tsc tsx turbo tty type uname
    uniq unset unxz unzip uptime uv uvicorn uvx vagrant vercel vi vim virtualenv vite vitest vue wait watch wc webpack
    wget which whoami wrangler xargs xcodebuild xcrun xxd xz yamllint yarn yes yq zcat zig zip zsh zstd
    """.split()  # noqa: SIM905
)

EXTENSIONS = frozenset(
    """
    .adoc .asm .astro .avif .awk .bash .bat .bib .bmp .bzl .c .cc .cfg .cjs .clj .cljs .cmake .cmd .coffee .conf
    .cpp .cs .cshtml .csproj .css .csv .cts .cu .cxx .dart .diff .dockerfile .ejs .el .elm .erb .erl .ex .exs .f90
    .fish .fs .fsx .gif .go .gql .gradle .graphql .groovy .h .haml .hbs .hcl .hh .hpp .hrl .hs .htm .html .hxx .ico
    .ini .ino .ipynb .java .jinja .jinja2 .jl .jpeg .jpg .js .json .json5 .jsonc .jsonl .jsx .kt .kts .less .lisp .lock
    .log .lua .m .markdown .md .mdx .mjs .mk .ml .mli .mm .mod .mts .nim .nix .org .patch .pdf .php .pl .plist .pm
    .png .prisma .properties .proto .ps1 .psm1 .pug .py .pyi .pyx .r .rake .rb .rkt .rs .rst .sass .sbt .scala .scm
    .scss .sh .sln .sol .sql .styl .sum .sv .svelte .svg .swift .tcl .tex .tf .tfvars .toml .ts .tsv .tsx .txt .v .vb
    .vhd .vim .vue .webp .xaml .xhtml .xml .xsd .xsl .yaml .yml .zig .zsh
    """.split()  # noqa: SIM905
)

# One assignment in front of a command, its value quoted or not. Possessive: hostile text cannot make it slow.
_assignment = re.compile(r"""[A-Za-z_][A-Za-z0-9_]*+=(?:"[^"]*+"|'[^']*+'|[^\s"'])*+\s++""").match
_word = re.compile(r"\S++").match
_blank = re.compile(r"[\s({!]*+").match
# Programs that run another one, with the options of theirs that take a value.
_WRAPPERS: dict[str, frozenset[str]] = {
    "sudo": frozenset(("-u", "-g", "-h", "-p", "-C", "-D", "-R", "-T", "-U")),
    "env": frozenset(("-u", "-C", "-S")),
    "nice": frozenset(("-n",)),
    "time": frozenset(("-f", "-o")),
    "nohup": frozenset(),
    "command": frozenset(),
    "exec": frozenset(("-a",)),
}


def command_subject(command: str) -> str:
    """Return the program that a command line runs first, `other` if it is not on the list."""
    word = command[:64].split(None, 1)[:1]
    if word and word[0] in PROGRAMS:
        return word[0]
    return _program(command[:_COMMAND_CHARS_MAX])


def file_subject(path: str) -> str:
    """Return the extension of a file with its dot, in lower case, `other` if it is not on the list."""
    extension = path[path.rfind(".") :]
    if extension in EXTENSIONS:
        return extension
    extension = extension[:16].lower()
    return extension if extension in EXTENSIONS else OTHER


def _program(command: str) -> str:
    position = 0
    for _ in range(_WRAPPERS_MAX):
        position = _after_assignments(command, position)
        word = _word(command, position)
        if word is None:
            return OTHER
        name = _base_name(word[0])
        options = _WRAPPERS.get(name)
        if options is None:
            return name if name in PROGRAMS else OTHER
        position = _after_options(command, word.end(), options)
    return OTHER


def _base_name(word: str) -> str:
    return word.strip("\"'").replace("\\", "/").rpartition("/")[2].removesuffix(".exe").rstrip(";&|)")


def _after_assignments(command: str, position: int) -> int:
    blank = _blank(command, position)
    position = blank.end() if blank is not None else position
    while (found := _assignment(command, position)) is not None:
        position = found.end()
    return position


def _after_options(command: str, position: int, with_value: frozenset[str]) -> int:
    """Return the position behind the options of a wrapper; `with_value` are those that take the next word."""
    while True:
        blank = _blank(command, position)
        start = blank.end() if blank is not None else position
        word = _word(command, start)
        if word is None or not word[0].startswith("-"):
            return start
        position = word.end()
        if word[0] in with_value:
            blank = _blank(command, position)
            value = _word(command, blank.end() if blank is not None else position)
            position = value.end() if value is not None else position
