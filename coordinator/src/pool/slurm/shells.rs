//! The small programs for any POSIX shell that run where the cluster's commands do.

/// Exit code of [`read`] when there is no such file.
pub(crate) const ABSENT: i32 = 44;
/// Exit code of [`is_staged`] when others could have put something else there.
pub(crate) const DISTRUSTED: i32 = 45;

/// Says what is the matter with a file or folder that others than its user could change.
const TRUST: &str = r#"set -f
trusted() {
    set -- "$1" $(ls -ldnL -- "$1")
    case ${4-} in
        0 | "$(id -u)") ;;
        *)
            echo "$1 belongs to another user; remove it, or take a directory of your own" >&2
            return 1
            ;;
    esac
    case $2 in
        ?????w* | ????????w*)
            echo "$1 can be changed by others; run chmod go-w on it" >&2
            return 1
            ;;
    esac
}
"#;

/// Prints the file `$1`, unless others could have written it.
pub(crate) fn read() -> String {
    format!(r#"{TRUST}[ -e "$1" ] || exit 44; trusted "$1" || exit 45; exec cat -- "$1""#)
}

/// Tells whether the program `$1` is there, with `$2` bytes and, if `$3` is not empty, that SHA-256;
/// it is not if that cannot be told. Neither it nor the two folders it is in may be others' to change.
pub(crate) fn is_staged() -> String {
    const REST: &str = r#"for at in "${1%/*/*}" "${1%/*}" "$1"; do
    [ ! -e "$at" ] || trusted "$at" || exit 45
done
[ -x "$1" ] && [ "$(wc -c <"$1")" -eq "$2" ] || exit 1
[ -n "$3" ] || exit 0
sum=$(sha256sum <"$1") && [ "${sum%% *}" = "$3" ]"#;
    format!("{TRUST}{REST}")
}

/// Puts what it reads, `$3` bytes, into the file `$1` with the mode `$2`. A cut connection looks like
/// the end of the file: hence the size.
pub(crate) const PUT: &str = r#"umask 077
mkdir -p -- "${1%/*}" || exit 1
part=$1.part.$$
trap 'rm -f -- "$part"' EXIT
trap 'exit 1' HUP INT TERM
cat >"$part" || exit 1
size=$(wc -c <"$part") || exit 1
if [ "$size" -ne "$3" ]; then
    echo "got $size of $3 bytes" >&2
    exit 1
fi
chmod "$2" "$part" && mv -f -- "$part" "$1""#;

/// Writes one token a line, all or none; a cut connection takes the last line away. `printf` is a part
/// of the shell, so no token is anybody's argument.
pub(crate) const PUT_TOKENS: &str = r#"umask 077
mkdir -p -- "$3/logs" "$3/tokens" && chmod 700 "$3/tokens" || exit 1
part=$1.part.$$
trap 'rm -f -- "$part".*' EXIT
trap 'exit 1' HUP INT TERM
index=0
while [ "$index" -lt "$2" ]; do
    IFS= read -r token || exit 1
    printf '%s\n' "$token" >"$part.$index" || exit 1
    index=$((index + 1))
done
IFS= read -r last && [ "$last" = end ] || { echo "the tokens broke off" >&2; exit 1; }
index=0
while [ "$index" -lt "$2" ]; do
    mv -f -- "$part.$index" "$1.$index" || exit 1
    index=$((index + 1))
done"#;

/// Lists the folder `$1`, if there is one.
pub(crate) const LIST: &str = r#"[ -d "$1" ] || exit 0; exec ls -- "$1""#;

/// Runs a command for `$1` seconds at most; it is killed then. Not every system has `timeout`, and not
/// every `timeout` these options.
pub(crate) const BOUNDED: &str = r#"limit=$1
shift
if timeout -s KILL 9 true 2>/dev/null; then
    exec timeout -s KILL "$limit" "$@"
fi
exec 3<&0
"$@" <&3 3<&- &
pid=$!
(
    trap 'kill "$nap"; exit' TERM
    sleep "$limit" &
    nap=$!
    wait "$nap"
    kill -KILL "$pid"
) </dev/null >/dev/null 2>&1 3<&- &
dog=$!
wait "$pid"
code=$?
kill "$dog" 2>/dev/null
exit "$code""#;

/// Becomes a command that reads what this one has read, if that were `$1` bytes: half a script is one,
/// too. A dot keeps the line breaks at its end, and there must be one.
pub(crate) const WHOLE: &str = r#"bytes=$1
shift
text=$(cat; echo .)
text=${text%.}
size=$(printf %s "$text" | wc -c)
if [ "$size" -ne "$bytes" ]; then
    echo "got $size of $bytes bytes" >&2
    exit 1
fi
text=${text%"
"}
exec "$@" <<END
$text
END"#;

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Output, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    fn run(path: Option<&str>, words: &[&str], input: &str) -> Output {
        let mut command = Command::new("/bin/sh");
        if let Some(path) = path {
            command.env("PATH", path);
        }
        let mut child = command
            .arg("-c")
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One that does not read has ended.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// A `PATH` in which there is all but `timeout`.
    fn without_timeout() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for program in ["sh", "cat", "sleep", "wc"] {
            let there = ["/bin", "/usr/bin"].map(|at| format!("{at}/{program}"));
            let there = there
                .iter()
                .find(|path| std::path::Path::new(path).exists());
            std::os::unix::fs::symlink(there.unwrap(), folder.path().join(program)).unwrap();
        }
        folder
    }

    #[test]
    fn a_command_reads_and_answers_within_its_time_and_is_killed_after_it() {
        let folder = without_timeout();
        for path in [None, folder.path().to_str()] {
            let bounded = |seconds, program, input| {
                let words = [BOUNDED, "sh", seconds, "sh", "-c", program];
                run(path, &words, input)
            };
            let output = bounded("30", "cat; echo said >&2; exit 7", "hello");
            assert_eq!(output.status.code(), Some(7), "{path:?}");
            assert_eq!(output.stdout, b"hello");
            assert_eq!(output.stderr, b"said\n");
            let begun = Instant::now();
            let output = bounded("1", "exec sleep 100", "");
            assert!(!output.status.success());
            assert!(begun.elapsed() < Duration::from_secs(30), "{path:?}");
        }
    }

    #[test]
    fn a_command_begins_only_with_the_whole_of_its_script() {
        for script in [
            "#!/bin/sh\necho $HOME `x` 'é' \\\n",
            "a\n\n\n",
            "EOF\nEND\n",
        ] {
            let size = script.len().to_string();
            let words = [WHOLE, "sh", &size, "cat"];
            assert_eq!(run(None, &words, script).stdout, script.as_bytes());
            let output = run(None, &words, &script[..script.len() - 1]);
            assert_eq!(output.stdout, b"", "{script:?}");
            assert_eq!(output.status.code(), Some(1));
        }
    }
}
