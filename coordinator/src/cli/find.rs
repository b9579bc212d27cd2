//! Which run a person means.

use muster_proto::v1;

use super::client::Client;
use super::error::{CliError, Result};

/// Runs asked for at once.
const PAGE: u32 = 500;
/// Older runs are found by their whole name only.
const PAGES_MAX: usize = 10;
/// Names that an ambiguous prefix is explained with.
const EXAMPLES_MAX: usize = 5;

/// Finds the run that `wanted` names: whole, by a prefix that no other has, or `@last`, which is
/// also what nothing means.
pub(crate) async fn run(client: &Client, wanted: Option<&str>) -> Result<String> {
    match wanted {
        None | Some("@last") => last(client).await,
        Some(wanted) => by_prefix(client, wanted).await,
    }
}

async fn last(client: &Client) -> Result<String> {
    let listed = list(client, 1, String::new()).await?;
    listed
        .runs
        .into_iter()
        .next()
        .map(|run| run.run)
        .ok_or_else(|| {
            CliError::user("there is no run yet")
                .hint("`coordinator run PLAN` or `coordinator submit PLAN` makes one")
        })
}

async fn by_prefix(client: &Client, wanted: &str) -> Result<String> {
    let mut found: Vec<String> = Vec::new();
    let mut page = String::new();
    for _ in 0..PAGES_MAX {
        let listed = list(client, PAGE, page).await?;
        for run in listed.runs {
            if run.run == wanted {
                return Ok(run.run);
            }
            if run.run.starts_with(wanted) {
                found.push(run.run);
            }
        }
        page = listed.next_page_token;
        if page.is_empty() {
            return only(wanted, found);
        }
    }
    if found.is_empty() {
        return Ok(wanted.to_owned());
    }
    only(wanted, found)
}

fn only(wanted: &str, mut found: Vec<String>) -> Result<String> {
    match found.len() {
        0 => Err(CliError::user(format!("no run is called {wanted:?}"))
            .hint("`coordinator status` lists the runs")),
        1 => Ok(found.remove(0)),
        count => {
            let shown: Vec<&str> = found
                .iter()
                .take(EXAMPLES_MAX)
                .map(String::as_str)
                .collect();
            let more = if count > EXAMPLES_MAX { ", …" } else { "" };
            Err(
                CliError::user(format!("{count} runs begin with {wanted:?}")).hint(format!(
                    "write more of the name: {}{more}",
                    shown.join(", ")
                )),
            )
        }
    }
}

async fn list(client: &Client, limit: u32, page_token: String) -> Result<v1::ListRunsResponse> {
    let request = v1::ListRunsRequest { limit, page_token };
    Ok(client.operator().list_runs(request).await?.into_inner())
}

/// Gets a run whole, page by page.
pub(crate) async fn get(client: &Client, run: &str) -> Result<v1::Run> {
    let mut whole: Option<v1::Run> = None;
    let mut page_token = String::new();
    loop {
        let request = v1::GetRunRequest {
            run: run.to_owned(),
            limit: 0,
            page_token: std::mem::take(&mut page_token),
        };
        let response = client.operator().get_run(request).await?.into_inner();
        let page = response.run.ok_or_else(|| {
            CliError::connection(format!("the coordinator described run {run} with nothing"))
        })?;
        let is_last = response.next_page_token.is_empty() || page.tasks.is_empty();
        let whole = match &mut whole {
            Some(whole) => {
                whole.tasks.extend(page.tasks);
                whole
            }
            none => none.insert(page),
        };
        if is_last {
            return Ok(std::mem::take(whole));
        }
        page_token = response.next_page_token;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_must_fit_one_run() {
        assert_eq!(only("a", vec!["a-1".to_owned()]).unwrap(), "a-1");
        let error = only("a", vec!["a-1".to_owned(), "a-2".to_owned()]).unwrap_err();
        assert!(
            error.to_string().contains("2 runs begin with \"a\""),
            "{error}"
        );
        assert!(error.to_string().contains("a-1, a-2"), "{error}");
        assert!(only("a", Vec::new()).is_err());
    }
}
