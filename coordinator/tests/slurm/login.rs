//! What is asked over a login host.

use super::*;

/// A `ssh` that runs what it is given here, after `before`.
fn with_ssh(before: &str) -> Site {
    let mut site = Site::new();
    site.settings.login = Some("ada@login".to_owned());
    site.settings.ssh_options = vec!["-p".to_owned(), "2222".to_owned()];
    site.program(
        "ssh",
        &format!(
            "echo >>\"$SITE/dialled\"; echo \"$@\" | head -n 1 >>\"$SITE/lines\"\n\
             for line in \"$@\"; do :; done\n{before}\nexec sh -c \"$line\""
        ),
    );
    site
}

#[tokio::test]
async fn a_login_host_is_asked_over_one_connection_and_sees_no_secret_in_arguments() {
    let site = with_ssh("export SBATCH_ACCOUNT=mine SQUEUE_FORMAT=%i");
    site.program(
        "sbatch",
        "cat >\"$SITE/script\"; env >\"$SITE/environment\"; echo 100",
    );
    let provider = site.provider();
    let started = provider.start(&site.order(1, 2)).await.unwrap();
    assert_eq!(externals(&started), ["100_0", "100_1"]);
    assert_eq!(provider.list(&[]).await.unwrap(), []);
    let lines = site.said("lines");
    let control = format!("ControlPath=\"{}/ssh/", site.path("home").display());
    for line in lines.lines() {
        assert!(
            line.starts_with("-p 2222 -T -x -a -o BatchMode=yes"),
            "{line}"
        );
        assert!(
            line.contains(&control) && line.contains(" -- ada@login exec sh -c "),
            "{line}"
        );
        assert!(!line.contains("secret"), "{line}");
    }
    assert_eq!(mode(&site.path("home/ssh")), 0o700);
    let environment = site.said("environment");
    assert!(!environment.contains("SBATCH_ACCOUNT"), "{environment}");
    assert_eq!(
        fs::read_to_string(
            site.shared("bin")
                .join(site.staged("bin").concat())
                .join("muster")
        )
        .unwrap(),
        "the program of workers"
    );
}

#[tokio::test]
async fn a_connection_that_breaks_is_tried_again_unless_something_was_ordered() {
    let site = with_ssh("[ \"$(wc -l <\"$SITE/dialled\")\" -gt 2 ] || exit 255");
    assert_eq!(site.provider().list(&[]).await.unwrap(), []);
    let site = with_ssh(
        "case $line in *sbatch*parsable*) echo cut >>\"$SITE/orders\"; echo 'Connection reset' >&2; exit 255;; esac",
    );
    let why = unclear(site.provider().start(&site.order(1, 1)).await);
    assert_eq!(why, "no connection to ada@login: Connection reset");
    assert_eq!(site.said("orders"), "cut\n");
    let site = with_ssh("echo 'Permission denied' >&2; exit 255");
    let why = unclear(site.provider().list(&[]).await);
    assert_eq!(why, "no connection to ada@login: Permission denied");
    assert_eq!(site.said("dialled").lines().count(), 4);
}

#[tokio::test]
async fn an_exit_code_of_a_command_is_not_taken_for_a_broken_connection() {
    let site = with_ssh("");
    let complaint = "sbatch: unrecognized option '--nope'";
    site.program("sbatch", &format!("echo \"{complaint}\" >&2; exit 255"));
    let why = refused(site.provider().start(&site.order(1, 1)).await);
    assert_eq!(why, format!("sbatch refused: {complaint}"));
    fs::remove_file(site.path("bin/sbatch")).unwrap();
    site.program("sbatch", "exit 127");
    refused(site.provider().start(&site.order(1, 1)).await);
}

#[tokio::test]
async fn what_is_cut_off_on_its_way_is_never_in_place() {
    // Each input ends early.
    let site = with_ssh("head -c 5 | sh -c \"$line\"; exit 255");
    unclear(site.provider().start(&site.order(1, 1)).await);
    let left = site.staged("bin").concat();
    assert_eq!(site.staged(&format!("bin/{left}")), [""; 0]);
    let mut site = with_ssh("head -c 20 | sh -c \"$line\"; exit 255");
    site.settings.worker = Some("/opt/worker-agent".into());
    unclear(site.provider().start(&site.order(1, 3)).await);
    assert_eq!(site.staged("tokens"), [""; 0]);
}

/// Waits until a process that wrote its id into that file has ended.
async fn ended(site: &Site, file: &str) {
    let stat = PathBuf::from(format!("/proc/{}/stat", site.said(file).trim()));
    let gone = async {
        // The system may take a while to forget one that has ended.
        while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, gone).await.unwrap();
}

#[tokio::test]
async fn a_submission_ends_by_itself_when_nobody_on_this_side_waits_for_it() {
    // As the other side goes on when the connection is no more.
    let mut site = with_ssh("exec setsid --wait sh -c \"$line\"");
    site.program("sbatch", "echo $$ >\"$SITE/pid\"; exec sleep 3600");
    site.limits.command = Duration::from_secs(2);
    let why = unclear(site.provider().start(&site.order(1, 1)).await);
    assert_eq!(
        why,
        "no answer from ada@login in 2 s while submitting with sbatch"
    );
    ended(&site, "pid").await;
    // One that ends in our time is heard, and may still have arrived.
    let mut site = with_ssh("");
    site.program("sbatch", "exec sleep 3600");
    site.limits.submission = Duration::from_secs(1);
    let why = unclear(site.provider().start(&site.order(1, 1)).await);
    assert!(why.starts_with("sbatch did not end in time"), "{why}");
}

#[tokio::test]
async fn a_submission_begins_neither_late_nor_with_half_a_script() {
    // The shell on the other side begins when nobody waits for it any more.
    let mut site = with_ssh(
        r#"case $line in *sbatch*parsable*) exec setsid --wait sh -c '
            sleep 4; sh -c "$0"; echo over >"$1/over"' "$line" "$SITE";; esac"#,
    );
    site.limits.command = Duration::from_secs(2);
    unclear(site.provider().start(&site.order(1, 1)).await);
    let over = async {
        while site.said("over").is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, over).await.unwrap();
    assert_eq!(site.said("script"), "");
    let site =
        with_ssh("case $line in *sbatch*parsable*) head -c 700 | sh -c \"$line\"; exit;; esac");
    let why = unclear(site.provider().start(&site.order(1, 1)).await);
    assert!(why.starts_with("sbatch failed: got 700 of "), "{why}");
    assert_eq!(site.said("script"), "");
}

#[tokio::test]
async fn what_a_login_shell_says_by_itself_is_no_answer() {
    let site = with_ssh(
        "printf 'Welcome to the cluster\\n4711\\nNo mail for json plugin'; echo 'quota: 97 %' >&2",
    );
    site.program("squeue", &queue(&[job(5, 1, "RUNNING")]));
    let provider = site.provider();
    let started = provider.start(&site.order(1, 1)).await.unwrap();
    assert_eq!(externals(&started), ["100"]);
    assert_eq!(externals(&provider.list(&[]).await.unwrap()), ["5"]);
    let site = with_ssh("echo 'This account is not available'; exit 1");
    let why = unclear(site.provider().list(&[]).await);
    assert_eq!(
        why,
        "the login shell on ada@login ran nothing while listing the join tokens: exit code 1"
    );
}
