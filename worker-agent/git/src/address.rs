//! Addresses as people may see them: without what they give to a remote to be let in.

/// Gives a text in which no address shows its user part: `https://TOKEN@host/x` and
/// `https://user:secret@host/x` become `https://***@host/x`.
///
/// The name in an `ssh` address tells where, not who, so it stays, and only a password after it goes.
/// `user@host:path` is such an address too, and nothing in it is hidden.
#[must_use]
pub fn without_users(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        rest = after;
        let authority = authority(after);
        let Some((user, _)) = authority.rsplit_once('@') else {
            continue;
        };
        rest = after.get(user.len()..).unwrap_or_default();
        let scheme = before
            .rsplit(|letter: char| !(letter.is_ascii_alphanumeric() || "+-.".contains(letter)))
            .next()
            .unwrap_or_default();
        let is_login = scheme
            .split('+')
            .any(|part| part.eq_ignore_ascii_case("ssh"));
        match user.split_once(':') {
            None if is_login => shown.push_str(user),
            Some((login, _)) if is_login => {
                shown.push_str(login);
                shown.push_str(":***");
            }
            _ if user.is_empty() => {}
            _ => shown.push_str("***"),
        }
    }
    shown.push_str(rest);
    shown
}

/// Gives what stands between `://` and the path, or the end of an address within a text.
fn authority(after: &str) -> &str {
    let ends = |letter: char| {
        letter.is_whitespace() || letter.is_control() || matches!(letter, '/' | '\'' | '"' | '<')
    };
    after.split(ends).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::without_users;

    #[test]
    fn who_somebody_is_to_a_remote_is_not_shown() {
        for (text, shown) in [
            ("https://ghp_x1@host/a.git", "https://***@host/a.git"),
            ("https://ann:s3cret@host/a.git", "https://***@host/a.git"),
            ("https://ann:p@ss:w@host:81/a", "https://***@host:81/a"),
            ("HTTP://x@host", "HTTP://***@host"),
            ("https://host/a@v1", "https://host/a@v1"),
            ("https://host", "https://host"),
            ("ssh://git@host/a", "ssh://git@host/a"),
            ("ssh://git:s3cret@host/a", "ssh://git:***@host/a"),
            ("git+ssh://git@host/a", "git+ssh://git@host/a"),
            ("git@host:a/b.git", "git@host:a/b.git"),
            ("/srv/a@b", "/srv/a@b"),
            (
                "fatal: 'https://t1@host/a' and https://t2@b failed: ann@b",
                "fatal: 'https://***@host/a' and https://***@b failed: ann@b",
            ),
            (
                "could not read for 'https://t1@host':",
                "could not read for 'https://***@host':",
            ),
            ("ends with ://", "ends with ://"),
        ] {
            assert_eq!(without_users(text), shown);
        }
    }
}
