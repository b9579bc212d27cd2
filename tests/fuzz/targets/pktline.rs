//! The head of a push, in chunks of any size.
#![no_main]

use coordinator::git::pktline::{CommandList, Parser};
use libfuzzer_sys::fuzz_target;

fn whole(bytes: &[u8], chunk: usize) -> Option<(CommandList, Vec<u8>)> {
    let mut parser = Parser::default();
    let mut chunks = bytes.chunks(chunk.max(1));
    while let Some(chunk) = chunks.next() {
        match parser.push(chunk) {
            Ok(None) => {}
            Ok(Some((list, mut rest))) => {
                rest.extend(chunks.flatten());
                return Some((list, rest));
            }
            Err(_) => return None,
        }
    }
    None
}

fuzz_target!(|input: (u8, &[u8])| {
    let (chunk, bytes) = input;
    let at_once = whole(bytes, bytes.len());
    assert_eq!(at_once, whole(bytes, usize::from(chunk)), "chunks matter");
    let Some((list, _)) = at_once else { return };
    let _ = list.refuse(|command| command.refname.clone());
    // What git is handed says the same updates, and nothing behind them.
    let (again, rest) = whole(&list.encode(), 64).expect("our own list is refused");
    assert_eq!(again.commands, list.commands);
    assert!(rest.is_empty());
    for command in &list.commands {
        coordinator::git::refs::ParsedRef::parse(&command.refname);
    }
});
