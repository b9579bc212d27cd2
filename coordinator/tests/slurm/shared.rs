//! What lies in the shared folder, and who else may have put it there.

use super::*;

fn permit(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_program_of_the_same_length_is_not_taken_for_the_own_one() {
    let site = Site::new();
    site.provider().start(&site.order(1, 1)).await.unwrap();
    let program = site.shared("bin").join(site.staged("bin").concat());
    let program = program.join("muster");
    let own = fs::read_to_string(&program).unwrap();
    for sum in ["", "exit 127", "echo 0000  -"] {
        if !sum.is_empty() {
            site.program("sha256sum", sum);
        }
        fs::write(&program, own.to_uppercase()).unwrap();
        let provider = site.provider();
        provider.start(&site.order(2, 1)).await.unwrap();
        assert_eq!(fs::read_to_string(&program).unwrap(), own);
        let made = fs::metadata(&program).unwrap().modified().unwrap();
        provider.start(&site.order(3, 1)).await.unwrap();
        let now = fs::metadata(&program).unwrap().modified().unwrap();
        assert_eq!(now, made, "sent each time");
    }
}

#[tokio::test]
async fn what_others_could_have_written_is_not_run() {
    let site = Site::new();
    let provider = site.provider();
    provider.start(&site.order(1, 1)).await.unwrap();
    let script = site.shared("worker.sbatch");
    fs::write(&script, "#!/bin/sh\n@{directives}\n").unwrap();
    permit(&script, 0o644);
    provider.start(&site.order(2, 1)).await.unwrap();
    let bin = site.shared("bin");
    let version = bin.join(site.staged("bin").concat());
    let program = version.join("muster");
    for path in [&script, &bin, &version, &program] {
        let right = mode(path);
        for wrong in [right | 0o020, right | 0o002] {
            permit(path, wrong);
            let why = refused(provider.start(&site.order(3, 1)).await);
            let said = format!(
                "{} can be changed by others; run chmod go-w on it",
                path.display()
            );
            assert!(why.ends_with(&said), "{why}");
            permit(path, right);
        }
        let is_root = std::os::unix::fs::chown(path, Some(12_345), None).is_ok();
        if !is_root {
            site.program("id", "echo 12345");
        }
        let why = refused(provider.start(&site.order(3, 1)).await);
        assert!(why.contains(" belongs to another user; "), "{why}");
        if is_root {
            std::os::unix::fs::chown(path, Some(0), None).unwrap();
        } else {
            fs::remove_file(site.path("bin/id")).unwrap();
        }
    }
    provider.start(&site.order(4, 1)).await.unwrap();
}

#[tokio::test]
async fn how_a_job_failed_is_told_with_the_place_of_its_log() {
    let mut site = Site::new();
    let array = job(5, 7, "FAILED").replace(
        "\"array_job_id\": 0, \"array_task_id\": null",
        "\"array_job_id\": 5, \"array_task_id\": 2",
    );
    let jobs = [job(4, 1, "TIMEOUT"), array, job(6, 9, "COMPLETED")];
    site.program("squeue", &queue(&jobs));
    let details = async |site: &Site| -> Vec<String> {
        let listed = site.provider().list(&[]).await.unwrap();
        let detail = |sighting: Sighting| match sighting.state {
            Sighted::Ended { detail } => detail.to_string(),
            other => panic!("{other:?}"),
        };
        listed.into_iter().map(detail).collect()
    };
    let logs = site.shared("logs").display().to_string();
    assert_eq!(
        details(&site).await,
        [
            format!("TIMEOUT; its log is {logs}/muster-{HOME}-1-gpu-4.log"),
            format!("FAILED; its log is {logs}/muster-{HOME}-7-gpu-5_2.log"),
            format!("COMPLETED; its log is {logs}/muster-{HOME}-9-gpu-6.log"),
        ]
    );
    site.settings.directives = vec!["--exclusive --out=/tmp/%j".to_owned()];
    assert_eq!(details(&site).await, ["TIMEOUT", "FAILED", "COMPLETED"]);
}
