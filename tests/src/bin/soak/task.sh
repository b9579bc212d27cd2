#!/usr/bin/env bash
# The program of every task of the soak: bash task.sh [WORD...]
#
# Words: for=MS work so long; fails=N exit with 3 in attempts up to N; bad=N write wrong content in
# attempts up to N; lines=N print so many lines; needs=A,B insist on the files of other tasks;
# file=NAME write this file; and the flags hang, stubborn (ignores TERM), daemon (leaves a process in
# a session of its own), naked (leaves one without environment), kill (fails by a signal), nothing
# (changes no file), many (writes so many small files that a push of them is kept as a pack).
#
# Whatever it does, it notes in a ledger outside of its workspace: one line for the beginning, one
# for each sign of life of each of its processes, one for the end.
set -u
export LC_ALL=C
ledger=$SOAK_LEDGER/$MUSTER_RUN/$MUSTER_TASK.$MUSTER_ATTEMPT

note() {
    printf '%s %s %s %s\n' "$EPOCHREALTIME" "$1" "$$" "$2" >>"$ledger"
}

# Lives until it is killed, or for two minutes where nobody does.
linger() {
    trap '' TERM HUP INT
    cd /
    local until=$((SECONDS + 120))
    while [ "$SECONDS" -lt "$until" ]; do
        note alive "$1"
        sleep 0.1
    done
    note left "$1"
}

duration=0 fails=0 bad=0 lines=1 needs='' file=work/$MUSTER_TASK.txt
hang='' stubborn='' daemon='' naked='' kill='' nothing='' many=''
for word in "$@"; do
    case $word in
    linger=*)
        linger "${word#*=}"
        exit
        ;;
    verify=*)
        note verify begun
        sleep "${word#*=}"
        grep -q "^good $MUSTER_TASK " "$file"
        code=$?
        note verify "$code"
        exit "$code"
        ;;
    for=*) duration=${word#*=} ;;
    fails=*) fails=${word#*=} ;;
    bad=*) bad=${word#*=} ;;
    lines=*) lines=${word#*=} ;;
    needs=*) needs=${word#*=} ;;
    file=*) file=${word#*=} ;;
    hang) hang=1 ;;
    stubborn) stubborn=1 ;;
    daemon) daemon=1 ;;
    naked) naked=1 ;;
    kill) kill=1 ;;
    nothing) nothing=1 ;;
    many) many=1 ;;
    *)
        echo "unknown word $word" >&2
        exit 64
        ;;
    esac
done

mkdir -p "$SOAK_LEDGER/$MUSTER_RUN"
note begin "$MUSTER_MARK"
if [ -n "$stubborn" ]; then trap '' TERM HUP INT; fi
if [ -n "$daemon" ]; then
    (setsid bash "$0" linger=daemon </dev/null >/dev/null 2>&1 &)
fi
if [ -n "$naked" ]; then
    (setsid env -i PATH="$PATH" SOAK_LEDGER="$SOAK_LEDGER" MUSTER_RUN="$MUSTER_RUN" \
        MUSTER_TASK="$MUSTER_TASK" MUSTER_ATTEMPT="$MUSTER_ATTEMPT" \
        bash "$0" linger=naked </dev/null >/dev/null 2>&1 &)
fi
for name in ${needs//,/ }; do
    if ! grep -q "^good $name " "work/$name.txt"; then
        echo "the work of $name is missing" >&2
        note end 9
        exit 9
    fi
done

seq -f "$MUSTER_TASK $MUSTER_ATTEMPT line %.0f of many, with some words to make it longer" "$lines"

# In steps, so that the last sign of life is never far from the last moment of life.
until=$((${EPOCHREALTIME/./} / 1000 + duration))
while [ -n "$hang" ] || [ "$((${EPOCHREALTIME/./} / 1000))" -lt "$until" ]; do
    note alive work
    sleep 0.1
done

if [ "$MUSTER_ATTEMPT" -le "$fails" ]; then
    echo "attempt $MUSTER_ATTEMPT fails as it should" >&2
    note end 3
    if [ -n "$kill" ]; then kill -9 $$; fi
    exit 3
fi
if [ -z "$nothing" ]; then
    word=good
    if [ "$MUSTER_ATTEMPT" -le "$bad" ]; then word=bad; fi
    mkdir -p "$(dirname "$file")"
    echo "$word $MUSTER_TASK $MUSTER_ATTEMPT $MUSTER_MARK" >"$file"
fi
if [ -n "$many" ]; then
    mkdir -p "many/$MUSTER_TASK"
    for number in {1..150}; do
        echo "$number $MUSTER_TASK $MUSTER_ATTEMPT" >"many/$MUSTER_TASK/$number"
    done
fi
note end 0
