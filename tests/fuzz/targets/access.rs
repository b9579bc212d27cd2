//! Tokens, credentials, address files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_connect::{AddressFile, Token};

fuzz_target!(|text: &str| {
    if let Ok(token) = Token::parse(text) {
        let again = Token::parse(&token.reveal()).expect("its own text");
        assert_eq!(again.reveal(), token.reveal());
        Token::parse_credential(&token.credential()).expect("its own credential");
    }
    let _ = Token::parse_credential(text);
    if let Ok(file) = serde_json::from_str::<AddressFile>(text) {
        let _ = file.endpoint();
    }
});
