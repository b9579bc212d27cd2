use std::collections::BTreeMap;

use super::*;

#[test]
fn ex() {
    for e in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/plans")).unwrap() {
        let p = e.unwrap().path();
        if p.extension().is_none_or(|x| x != "yaml") {
            continue;
        }
        let plan = read(&p, &BTreeMap::new()).unwrap_or_else(|e| panic!("{e}"));
        let g = Graph::of(&plan);
        if plan.document.tasks.len() < 20 {
            println!("{}\n{}", g.text(), g.mermaid());
        }
    }
    let generator = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    println!(
        "{}",
        serde_json::to_string_pretty(&generator.into_root_schema_for::<PlanDocument>()).unwrap()
    );
}
