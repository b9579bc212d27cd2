use super::*;

fn token() -> Token {
    Token {
        id: TokenId::from_bytes([1, 2, 3, 4, 5, 6, 7, 8]),
        secret: Secret::from_bytes([0xab; 32]),
        ca: Fingerprint::from_bytes([0xcd; 32]),
    }
}

#[test]
fn a_token_reads_as_it_was_written() {
    let read = Token::parse(&format!("  {}\n", token().reveal())).unwrap();
    assert_eq!(read.id, token().id);
    assert_eq!(read.secret.expose(), token().secret.expose());
    assert_eq!(read.ca, token().ca);
}

#[test]
fn a_cut_or_lengthened_token_is_damaged() {
    let text = token().reveal();
    for end in PREFIX.len()..text.len() {
        assert!(
            matches!(Token::parse(&text[..end]), Err(Error::Damaged)),
            "cut at {end}"
        );
    }
    assert!(matches!(
        Token::parse(&format!("{text}AAAA")),
        Err(Error::Damaged)
    ));
    assert!(matches!(Token::parse("muster_!!!"), Err(Error::Damaged)));
    assert!(matches!(Token::parse("ghp_abc"), Err(Error::NotAToken)));
}

#[test]
fn a_token_of_a_later_form_asks_for_an_update() {
    let mut bytes = URL_SAFE_NO_PAD
        .decode(&token().reveal()[PREFIX.len()..])
        .unwrap();
    bytes[0] = 9;
    let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
    assert!(matches!(
        Token::parse(&text),
        Err(Error::Version { version: 9 })
    ));
}

#[test]
fn the_debug_form_hides_the_secret() {
    let shown = format!("{:?}", token());
    assert!(!shown.contains("abab") && !shown.contains("171"), "{shown}");
}

#[test]
fn a_credential_carries_id_and_secret_but_no_fingerprint() {
    let credential = token().credential();
    assert!(!credential.contains("cdcd"));
    let (id, secret) = Token::parse_credential(&credential).unwrap();
    assert_eq!((id, *secret.expose()), (token().id, [0xab; 32]));
    assert!(Token::parse_credential(&token().reveal()).is_some());
    assert!(token().bearer().is_sensitive());
    for bad in [
        "",
        "token_",
        "token_01_02",
        "lease_1_ab",
        &credential[1..],
        &credential[..80],
    ] {
        assert!(Token::parse_credential(bad).is_none(), "{bad}");
    }
}

#[test]
fn a_token_file_is_trimmed_and_its_faults_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("join.token");
    assert!(matches!(read_token_file(&path), Err(Error::Missing { .. })));

    let fault = |text: &[u8]| {
        std::fs::write(&path, text).unwrap();
        match read_token_file(&path).unwrap_err() {
            Error::InFile { source, path } => {
                assert!(path.ends_with("join.token"));
                *source
            }
            other => panic!("{other}"),
        }
    };
    assert!(matches!(fault(b""), Error::NotAToken));
    assert!(matches!(fault(b"\xff\xfe"), Error::NotAToken));
    assert!(matches!(fault(&[b'x'; 10_000]), Error::NotAToken));
    assert!(matches!(fault(b"muster_AAAA"), Error::Damaged));

    std::fs::write(&path, format!("\n{}\n\n", token().reveal())).unwrap();
    assert_eq!(read_token_file(&path).unwrap().id, token().id);
}
