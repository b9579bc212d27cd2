//! Secrets, leftovers and transcripts.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use coordinator::audit::Code;

use super::Then::{Clean, Goes, Stays};
use super::{Case, case, try_all};

pub(super) const CASES: &[Case] = &[
    case(Code::ModeOpen, Clean, |place| {
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(place.home().join("secret.key"), open).unwrap();
    }),
    case(Code::SecretsDamaged, Stays, |place| {
        std::fs::remove_file(place.home().join("tls/ca.key")).unwrap();
    }),
    case(Code::FileUnfinished, Goes, |place| {
        std::fs::write(place.home().join(".muster-x1"), "half").unwrap();
    }),
    case(Code::BackupUnfinished, Clean, |place| {
        let left = place.folder.join(".muster-unfinished-x1");
        std::fs::create_dir_all(left.join("home")).unwrap();
        std::fs::write(left.join("home/secret.key"), "secret").unwrap();
    }),
    case(Code::AddressStale, Clean, |place| {
        let here = muster_connect::AddressFile {
            address: "127.0.0.1:1".to_owned(),
            ca_path: place.home().join("tls/ca.pem"),
        };
        here.write(&place.home()).unwrap();
    }),
    case(Code::Repaired, Stays, |place| {
        std::fs::create_dir_all(place.home().join("repaired/once")).unwrap();
    }),
    case(Code::TranscriptTorn, Clean, |place| {
        cut(&place.transcript("a"), 3);
    }),
    case(Code::TranscriptDamaged, Clean, |place| {
        flip(&place.transcript("a"), 12);
    }),
    case(Code::TranscriptGap, Clean, |place| {
        // The second of three events goes; the first record says whose they are.
        let path = place.transcript("a");
        let whole = std::fs::read(&path).unwrap();
        let mut ends = vec![0];
        while let Some(length) = whole[*ends.last().unwrap()..].first_chunk::<4>() {
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap();
            ends.push(ends.last().unwrap() + 8 + length);
        }
        let rest = [&whole[..ends[2]], &whole[ends[3]..]].concat();
        std::fs::write(&path, rest).unwrap();
    }),
    case(Code::TranscriptDamaged, Clean, |place| {
        // The end of the last event: the first record, and events before it, are sound.
        let path = place.transcript("b");
        let whole = std::fs::read(&path).unwrap();
        flip(&path, whole.len() - 1);
    }),
    case(Code::TranscriptSwapped, Stays, |place| {
        let other = std::fs::read(place.transcript("b")).unwrap();
        std::fs::write(place.transcript("a"), other).unwrap();
    }),
    case(Code::TranscriptOfNoLease, Clean, |place| {
        let path = place.transcript("a");
        let other = path.with_file_name("attempt-7-L999.events");
        std::fs::copy(&path, other).unwrap();
    }),
    case(Code::TranscriptMissing, Stays, |place| {
        std::fs::remove_file(place.transcript("a")).unwrap();
    }),
    case(Code::TranscriptUnreadable, Stays, |place| {
        let path = place.transcript("a");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
    }),
    case(Code::TranscriptSetAside, Stays, |place| {
        let path = place.transcript("a");
        std::fs::copy(&path, format!("{}.damaged-1", path.display())).unwrap();
    }),
    case(Code::UsageDiffers, Clean, |place| {
        let ledger = rusqlite::Connection::open(place.home().join("usage.db")).unwrap();
        let row = "INSERT INTO usage SELECT lease, 1, 0, 1, 'm', 'm', 5, 0, 0, 1, 0, 1, 0, NULL
             FROM lease LIMIT 1";
        assert_eq!(ledger.execute(row, []).unwrap(), 1);
    }),
    case(Code::UsageUnreadable, Clean, |place| {
        std::fs::write(place.home().join("usage.db"), [b'x'; 5000]).unwrap();
    }),
    case(Code::FileUnknown, Stays, |place| {
        std::fs::write(place.transcript("a").with_file_name("x"), "").unwrap();
    }),
];

fn cut(path: &Path, bytes: usize) {
    let whole = std::fs::read(path).unwrap();
    std::fs::write(path, &whole[..whole.len() - bytes]).unwrap();
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_home_is_found_and_mended() {
    try_all(CASES).await;
}
