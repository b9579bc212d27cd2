//! `coordinator config`.

use serde_json::json;

use super::arguments::{Config, ConfigCommand};
use super::context::Context;
use super::error::{Exit, Result};
use super::table::Table;
use crate::config::{FILE_NAME, Flags, Shown};

pub(crate) fn config(context: &Context, options: &Config) -> Result<Exit> {
    let ConfigCommand::Check {
        json,
        listen,
        slots,
    } = options.command;
    let mut loaded = context.config(Flags { listen, slots })?;
    loaded.shown.insert(
        0,
        Shown {
            key: "home".to_owned(),
            value: context.home.display().to_string(),
            origin: context.home_origin.clone(),
        },
    );
    let file = context.home.join(FILE_NAME);
    if json {
        context.output.json(&json!({
            "home": context.home,
            "file": file,
            "file_exists": file.exists(),
            "values": loaded.shown,
        }))?;
        return Ok(Exit::Success);
    }
    let missing = if file.exists() {
        ""
    } else {
        " (not there, which is fine)"
    };
    context
        .output
        .say(&format!("configuration file: {}{missing}", file.display()));
    let paint = context.output.data_paint;
    let mut table = Table::new(&["KEY", "VALUE", "FROM"].map(|heading| paint.dim(heading)));
    for shown in loaded.shown {
        table.row(vec![shown.key, shown.value, shown.origin.to_string()]);
    }
    context.output.data(&table.text())?;
    Ok(Exit::Success)
}
