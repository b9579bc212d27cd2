//! Hosted repositories.

use coordinator::audit::Code;

use super::Then::{Clean, Stays};
use super::{Case, Place, case, try_all};

pub(super) const CASES: &[Case] = &[
    case(Code::RefMissing, Clean, |place| {
        let (done, _) = place.runs();
        place.git(&[
            "update-ref",
            "-d",
            &format!("refs/muster/attempts/{done}/a/1"),
        ]);
    }),
    case(Code::RefDiffers, Clean, |place| {
        let (done, _) = place.runs();
        let name = format!("refs/muster/base/{done}/c");
        place.git(&["update-ref", &name, &place.source()]);
    }),
    case(Code::BranchMissing, Clean, |place| {
        let (done, _) = place.runs();
        place.git(&[
            "update-ref",
            "-d",
            &format!("refs/heads/muster/{done}/integration"),
        ]);
    }),
    case(Code::BranchDiffers, Clean, |place| {
        let (done, _) = place.runs();
        let name = format!("refs/heads/muster/{done}/tasks/a");
        place.git(&["update-ref", &name, &place.source()]);
    }),
    case(Code::BranchBehind, Clean, |place| {
        let (_, live) = place.runs();
        let folder = format!("refs/heads/muster/{live}");
        let name = place.git(&["for-each-ref", "--format=%(refname)", &folder]);
        place.git(&["update-ref", "-d", &name]);
    }),
    case(Code::RefUnknown, Clean, |place| {
        let (done, _) = place.runs();
        let name = format!("refs/muster/wip/{done}/a/9");
        place.git(&["update-ref", &name, &place.source()]);
    }),
    case(Code::SourceOfNoRun, Stays, |place| {
        place.git(&["update-ref", "refs/muster/source/other", &place.source()]);
    }),
    case(Code::RefLost, Stays, |place| {
        place.git(&["update-ref", "refs/muster/lost/heads/x/1", &place.source()]);
    }),
    case(Code::GitLeftover, Clean, |place| {
        std::fs::write(place.repository().join("packed-refs.lock"), "").unwrap();
        let incoming = place.repository().join("objects/tmp_objdir-incoming-1");
        std::fs::create_dir(incoming).unwrap();
        std::fs::create_dir(place.home().join("repos/.new-1")).unwrap();
    }),
    case(Code::RepositoryUnused, Stays, |place| {
        let other = place.home().join("repos/other.git");
        std::fs::create_dir(&other).unwrap();
        super::git(&other, &["init", "-q", "--bare"]);
    }),
    case(Code::RefsUnreadable, Clean, |place| {
        std::fs::write(place.repository().join("packed-refs"), "garbage\n").unwrap();
    }),
    case(Code::RepositoryMissing, Stays, |place| {
        let moved = place.folder.join("moved");
        std::fs::rename(place.repository(), moved).unwrap();
    }),
];

/// Damage that shows in several ways at once.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_gone_is_found_wherever_it_is_needed() {
    let _nobodys = super::PROCESSES.read().await;
    let (_world, sound) = super::built().await;
    let (done, _) = sound.runs();
    for (what, wanted) in [
        ("", &["commit-missing", "ref-broken"][..]),
        ("^{tree}", &["commit-incomplete", "objects-damaged"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let place = sound.copy(folder.path());
        let id = place.git(&[
            "rev-parse",
            &format!("refs/heads/muster/{done}/tasks/c{what}"),
        ]);
        loose(&place);
        let (folder, file) = id.split_at(2);
        let object = place.repository().join("objects").join(folder).join(file);
        std::fs::remove_file(object).unwrap();
        let report = place.look().await;
        let found = super::codes(&report, None);
        for code in wanted {
            assert!(found.contains(code), "{code}: {:#?}", report.findings);
        }
    }
}

/// Takes packs apart, so that each object is a file.
fn loose(place: &Place) {
    let packs = place.repository().join("objects/pack");
    let aside = place.folder.join("pack");
    std::fs::rename(&packs, &aside).unwrap();
    std::fs::create_dir(&packs).unwrap();
    for path in std::fs::read_dir(aside).unwrap() {
        let path = path.unwrap().path();
        if path.extension().is_some_and(|end| end == "pack") {
            let unpacked = std::process::Command::new("git")
                .current_dir(place.repository())
                .args(["unpack-objects", "-q"])
                .stdin(std::fs::File::open(path).unwrap())
                .status();
            assert!(unpacked.unwrap().success());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_refs_is_found_and_mended() {
    try_all(CASES).await;
}
