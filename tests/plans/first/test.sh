#!/bin/sh
# test.sh [COMMAND...]: checks these commands of tally, or all of them.
cd "$(dirname "$0")" || exit 2
failed=0

check() { # COMMAND EXPECTED
    found=$(./tally "$1" poem.txt 2>&1)
    if [ "$found" = "$2" ]; then
        echo "ok      $1"
    else
        echo "FAILED  $1"
        printf 'expected:\n%s\nfound:\n%s\n' "$2" "$found" | sed 's/^/        /'
        failed=1
    fi
}

[ $# -gt 0 ] || set -- words count longest top report help readme
for command in "$@"; do
    case $command in
    words) check words "$(tr -cs '[:alpha:]' '\n' <poem.txt | tr '[:upper:]' '[:lower:]' | sed '/^$/d')" ;;
    count) check count 37 ;;
    longest) check longest understand ;;
    top) check top 'the 6
one 4
and 3' ;;
    report) check report 'words:   37
longest: understand
top:     the 6, one 4, and 3' ;;
    help) check help 'usage: tally COMMAND FILE
commands: count help longest report top words' ;;
    readme)
        if grep -q '^words:   37$' README.md; then
            echo "ok      readme"
        else
            echo "FAILED  readme: the README does not show a report"
            failed=1
        fi
        ;;
    *)
        echo "test.sh: no test for '$command'" >&2
        failed=1
        ;;
    esac
done
exit $failed
