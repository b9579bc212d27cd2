//! Options of `sbatch` in lines of `#SBATCH`: how they are written, and which a site may add.

use super::script::{Error, usable};

/// What tells the coordinator which job is whose, leads jobs away from where it looks, or makes
/// `sbatch` do something else than submit and say so. A site may not set it.
const RESERVED: [&str; 11] = [
    "job-name",
    "array",
    "clusters",
    "cluster",
    "wrap",
    "parsable",
    "test-only",
    "wait",
    "help",
    "usage",
    "version",
];
/// Those of them that have a letter.
const RESERVED_LETTERS: &str = "JaMWhuV";
/// Letters that take the rest of their word, or the next one.
const WITH_VALUE: &str = "AbBcCdDeFGikKLmnNopqRSTtwx";

/// Writes the value of an option so that `sbatch` reads it as it is, in a line of `#SBATCH`.
///
/// It ends words at blanks even behind a backslash, so only quotes help; in them a backslash
/// takes the next letter as it is.
pub(super) fn directive(option: &str, value: &str) -> Result<String, Error> {
    usable(option, value)?;
    if value.is_empty() {
        return Err(Error::Value {
            what: option.to_owned(),
            why: "is empty",
        });
    }
    let harmless = |letter: char| letter.is_ascii_alphanumeric() || "-_./:@=,+%".contains(letter);
    if value.chars().all(harmless) {
        return Ok(value.to_owned());
    }
    let escaped = value.replace('\\', r"\\").replace('"', "\\\"");
    Ok(format!("\"{escaped}\""))
}

/// Checks an option of the site's own.
pub(super) fn foreign(line: &str) -> Result<&str, Error> {
    let refuse = |why| Err(Error::Directive(line.to_owned(), why));
    let line = line.trim();
    if usable("a directive", line).is_err() {
        return refuse("it is not one line");
    }
    if !line.starts_with('-') {
        return refuse("it does not begin with a dash");
    }
    if words(line).iter().any(|word| is_reserved(word)) {
        return refuse("Muster sets that itself, or could not follow the job");
    }
    Ok(line)
}

/// Tells whether options of the site's own may lead elsewhere what its jobs print.
pub(super) fn names_output(lines: &[String]) -> bool {
    let mut words = lines.iter().flat_map(|line| words(line));
    words.any(|word| match word.strip_prefix("--") {
        Some(long) => long.starts_with("out") || long.starts_with("err"),
        None => word.starts_with('-') && word.contains(['o', 'e']),
    })
}

/// Tells whether a word is an option that a site may not set. Long ones may be cut short, and letters
/// may stand together.
fn is_reserved(word: &str) -> bool {
    if let Some(long) = word.strip_prefix("--") {
        let name = long.split_once('=').map_or(long, |(name, _)| name);
        // Some versions take it although it stands for several.
        return RESERVED.iter().any(|reserved| reserved.starts_with(name));
    }
    let Some(letters) = word.strip_prefix('-') else {
        return false;
    };
    let options = letters.char_indices();
    let mut options = options.take_while(|(at, _)| {
        let before = &letters[..*at];
        !before.ends_with(|letter| WITH_VALUE.contains(letter))
    });
    options.any(|(_, letter)| RESERVED_LETTERS.contains(letter))
}

/// Takes a line apart as Slurm 22.05 does.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut letters = line.chars().peekable();
    while letters.peek().is_some() {
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        if matches!(letters.peek(), None | Some('#')) {
            break;
        }
        let (mut word, mut quote, mut escaped) = (String::new(), None, false);
        while let Some(letter) = letters.next_if(|l| quote.is_some() || !l.is_whitespace()) {
            match letter {
                _ if escaped => {
                    escaped = false;
                    word.push(letter);
                }
                '\\' => escaped = true,
                _ if quote == Some(letter) => quote = None,
                '"' | '\'' if quote.is_none() => quote = Some(letter),
                '#' if quote.is_none() => {
                    words.push(word);
                    return words;
                }
                _ => word.push(letter),
            }
        }
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn directives_that_would_hide_a_job_are_refused() {
        for wrong in [
            "-J other",
            "-Jother",
            "--job-name=other",
            "-a 0-3",
            "-a0-3",
            "--exclusive --array=1",
            "-M far",
            "--clusters=far",
            "-Ha0-2",
            "-HJother",
            "-WH",
            "-n 4 -W",
            "--arr=0-3",
            "--job other",
            "--wai",
            "--wait",
            "--exclusive -- x",
            r"-\J other",
            "'-Jother'",
            "-Jother#x",
            "--help",
            "exclusive",
            "--exclusive\n#SBATCH -J x",
            "",
        ] {
            let refused = foreign(wrong);
            assert!(
                matches!(refused, Err(Error::Directive(..))),
                "{wrong}: {refused:?}"
            );
        }
        for right in [
            "--exclusive",
            "--wait-all-nodes=1",
            "-wJan,aWM",
            "-OsA JW",
            "--cluster-constraint=x",
            "--comment=\"what -J says\"",
            "--mail-user=ada@example.org # -J x",
        ] {
            assert_eq!(foreign(right), Ok(right));
        }
    }

    proptest! {
        #[test]
        fn no_value_leaves_its_quotes_in_a_directive(value in "\\PC{1,40}|[ \"'\\\\#$`a]{1,12}") {
            let line = format!("--account={}", directive("account", &value).unwrap());
            prop_assert_eq!(words(&line), [format!("--account={value}")]);
        }
    }
}
