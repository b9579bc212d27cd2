//! Files that are no plans, as the program meets them.

use super::Scene;

#[test]
fn files_that_are_no_plans_are_refused_before_anything_is_started() {
    let mut scene = Scene::new();
    std::fs::create_dir(scene.path("folder.yaml")).unwrap();
    std::fs::create_dir(scene.path("empty")).unwrap();
    scene.write("empty.yaml", "");
    scene.write("latin1.yaml", b"name: caf\xe9\ntasks: []\n");
    scene.write("utf16.yaml", b"\xff\xfet\0a\0s\0k\0s\0:\0\n\0");
    scene.write("nul.yaml", b"name: a\0b\n");
    scene.write("large.yaml", "x: y\n".repeat(4_000_000));
    scene.write("deep.yaml", "[".repeat(20_000));
    scene.write("image.yaml", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR");
    scene.write("wrong.yaml", "tasks:\n  - name: one\n    rum: echo\n");
    scene.write(
        "nowhere.yaml",
        "repo: gone\ntasks: [{name: a, run: echo}]\n",
    );
    scene.write("plain.yaml", "repo: empty\ntasks: [{name: a, run: echo}]\n");
    for (title, file) in [
        ("no file", "nothing.yaml"),
        ("a folder", "folder.yaml"),
        ("an endless device", "/dev/zero"),
        ("nothing in it", "empty.yaml"),
        ("another encoding", "latin1.yaml"),
        ("two bytes a character", "utf16.yaml"),
        ("a NUL", "nul.yaml"),
        ("twenty megabytes", "large.yaml"),
        ("twenty thousand levels", "deep.yaml"),
        ("an image", "image.yaml"),
        ("a misspelt key", "wrong.yaml"),
        ("a repository that is not there", "nowhere.yaml"),
        ("a folder that is no repository", "plain.yaml"),
    ] {
        scene.wrong(title, &["run", file]);
    }
    scene.wrong("checked alone", &["plan", "check", "wrong.yaml"]);
    scene.wrong("drawn", &["plan", "graph", "wrong.yaml"]);
    insta::assert_snapshot!(scene.told);
}

#[test]
fn a_byte_order_mark_is_no_mistake() {
    let scene = Scene::new();
    scene.write("bom.yaml", "\u{feff}tasks: [{name: a, run: echo}]\n");
    let checked = scene
        .command(&["plan", "check", "bom.yaml"])
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
}
