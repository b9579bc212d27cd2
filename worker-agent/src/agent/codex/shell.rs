//! The command within `/bin/bash -lc '…'`.

/// Shells that Codex starts commands with, and the flags before the command.
const SHELLS: [&str; 4] = ["bash", "sh", "zsh", "dash"];
const FLAGS: [&str; 2] = ["-lc", "-c"];
/// Where they are; a program of the same name elsewhere is another one.
const FOLDERS: [&str; 3] = ["/bin", "/usr/bin", "/usr/local/bin"];

/// Gives the script that a shell was to run, if a command is just that: what people and rules judge.
/// Any other command is given as it is.
pub(super) fn script(command: &str) -> String {
    inner(command).unwrap_or_else(|| command.to_owned())
}

fn inner(command: &str) -> Option<String> {
    let (program, rest) = command.split_once(' ')?;
    let name = match program.rsplit_once('/') {
        Some((folder, name)) => FOLDERS.contains(&folder).then_some(name)?,
        None => program,
    };
    let (flag, quoted) = rest.split_once(' ')?;
    if !SHELLS.contains(&name) || !FLAGS.contains(&flag) {
        return None;
    }
    one_word(quoted)
}

/// Undoes a shell's quoting of a text that is exactly one word.
fn one_word(quoted: &str) -> Option<String> {
    let mut word = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '\'' => loop {
                match characters.next()? {
                    '\'' => break,
                    inside => word.push(inside),
                }
            },
            '"' => loop {
                match characters.next()? {
                    '"' => break,
                    '\\' => match characters.next()? {
                        escaped @ ('$' | '`' | '"' | '\\') => word.push(escaped),
                        other => word.extend(['\\', other]),
                    },
                    // Not a plain word: the shell would put something else here.
                    '$' | '`' => return None,
                    inside => word.push(inside),
                }
            },
            '\\' => word.push(characters.next()?),
            plain if plain.is_alphanumeric() || "-_./,:=@%+^".contains(plain) => word.push(plain),
            _ => return None,
        }
    }
    Some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_of_a_shell_is_given_and_other_commands_stay() {
        for (command, expected) in [
            ("/bin/bash -lc 'touch q'", "touch q"),
            ("/bin/bash -lc ls", "ls"),
            ("bash -c \"echo \\\"a\\\" 'b'\"", "echo \"a\" 'b'"),
            ("/bin/sh -c 'it'\"'\"'s'", "it's"),
            ("/bin/sh -c 'it'\\''s'", "it's"),
            ("/bin/bash -lc 'a' 'b'", "/bin/bash -lc 'a' 'b'"),
            ("/bin/bash -lc a; rm b", "/bin/bash -lc a; rm b"),
            ("/bin/bash -lc \"$EVIL\"", "/bin/bash -lc \"$EVIL\""),
            ("/bin/bash -lc 'open", "/bin/bash -lc 'open"),
            ("/bin/bash -x 'ls'", "/bin/bash -x 'ls'"),
            ("/tmp/bash -c 'ls'", "/tmp/bash -c 'ls'"),
            ("rm -rf x", "rm -rf x"),
            ("", ""),
        ] {
            assert_eq!(script(command), expected);
        }
    }
}
