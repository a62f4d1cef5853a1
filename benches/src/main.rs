//! `benches [<figure>]...`: measures these figures, such as F1 or L3, or all of them, prints the
//! table and writes it to `bench/table.md` in the target directory. Exits with an error if a target
//! is missed.

use std::{fs, process::ExitCode};

use benches::{Failure, callgrind::folder, figures, machine, table::Table};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Failure> {
    let chosen: Vec<String> = std::env::args().skip(1).map(|name| name.to_uppercase()).collect();
    if let Some(unknown) = chosen.iter().find(|name| !figures::NAMES.contains(&name.as_str())) {
        return Err(format!("no figure {unknown}: there are {}", figures::NAMES.join(", ")).into());
    }
    let mut table = Table::default();
    for name in figures::NAMES {
        if chosen.is_empty() || chosen.iter().any(|one| one == name) {
            eprintln!("== {name}");
            table.extend(figures::measure(name).await?);
        }
    }
    let text = format!("{}\n\n{table}", machine::describe());
    fs::write(folder()?.join("table.md"), &text)?;
    println!("{text}");
    Ok(if table.missed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
