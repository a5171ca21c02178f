//! The layers only look down (ARCHITECTURE.md): checked in every manifest and every `use`.

use crate::shell;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A crate's folder, and what it may use directly. What those may use, it may use too: skipping a layer is
/// no step up.
const LAYERS: &[(&str, &[&str])] = &[
    ("platform", &[]),
    ("abi", &[]),
    ("vmem", &["platform"]),
    ("kern", &["vmem", "platform", "abi"]),
    ("testsuite", &["kern", "platform", "abi"]),
    ("hosted", &["kern", "platform"]),
    ("preload", &["hosted"]),
    ("kernmalloc", &["hosted", "kern", "vmem"]),
    ("capi", &["kern", "vmem", "platform", "abi"]),
    ("clib", &["capi", "hosted"]),
    // The reader's side never links the allocator.
    ("memstat", &["abi"]),
    ("cli", &["memstat"]),
    // Runs programs; links nothing of ours, so that it tests what users run.
    ("conformance", &[]),
];

fn below(layer: &str) -> Option<BTreeSet<&'static str>> {
    let (_, direct) = LAYERS.iter().find(|(name, _)| *name == layer)?;
    let mut all = BTreeSet::new();
    for lower in *direct {
        all.insert(*lower);
        all.extend(below(lower)?);
    }
    Some(all)
}

/// The layer that a crate's name in a manifest or a `use` stands for.
fn layer_of(name: &str) -> Option<&'static str> {
    let name = name.replace('_', "-");
    let short = name.strip_prefix("kernmalloc-").unwrap_or(&name);
    LAYERS.iter().map(|(layer, _)| *layer).find(|layer| *layer == short)
}

/// Names of the crates that a manifest's dependencies name, without those of its tests.
fn manifest_uses(manifest: &str) -> Vec<&str> {
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            inside = section.ends_with("dependencies") && !section.ends_with("dev-dependencies");
            // `[dependencies.kern]`
            if let Some((table, name)) = section.rsplit_once('.')
                && table.ends_with("dependencies")
                && !table.ends_with("dev-dependencies")
            {
                names.push(name);
            }
        } else if inside && !line.starts_with('#') {
            let Some((name, value)) = line.split_once(['=', '.', ' ']) else { continue };
            // `k = { package = "kernmalloc-kern", … }`
            let package = value.split_once("package").and_then(|(_, rest)| rest.split('"').nth(1));
            names.push(package.unwrap_or(name.trim()));
        }
    }
    names
}

/// First segments of the paths that a source file imports.
fn source_uses(source: &str) -> Vec<(usize, &str)> {
    let mut out = Vec::new();
    for (index, line) in source.lines().enumerate() {
        let line = line.trim_start();
        let line = match line.strip_prefix("pub") {
            Some(rest) => rest.trim_start_matches(|c| c != ' ').trim_start(),
            None => line,
        };
        let Some(path) = line.strip_prefix("use ").or_else(|| line.strip_prefix("extern crate ")) else { continue };
        let path = path.trim_start_matches(':');
        let end = path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
        out.push((index + 1, &path[..end]));
    }
    out
}

/// Upward edges of one crate, each a line for a person.
fn upward(layer: &str, manifest: &str, sources: &[(PathBuf, String)]) -> Result<Vec<String>> {
    let below = below(layer).with_context(|| format!("crates/{layer} has no place in xtask/src/layers.rs"))?;
    let bad = |name: &str| layer_of(name).filter(|used| *used != layer && !below.contains(used));
    let mut out = Vec::new();
    for name in manifest_uses(manifest) {
        if let Some(used) = bad(name) {
            out.push(format!("crates/{layer}/Cargo.toml: {layer} depends on {used}, which is not below it"));
        }
    }
    for (file, source) in sources {
        for (line, name) in source_uses(source) {
            // A module of the crate's own may have a layer's name.
            let own_module = source.contains(&format!("mod {name};")) || source.contains(&format!("mod {name} {{"));
            if let Some(used) = bad(name).filter(|_| !own_module) {
                out.push(format!("{}:{line}: {layer} uses {used}, which is not below it", file.display()));
            }
        }
    }
    Ok(out)
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, out)?;
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            out.push(path);
        }
    }
    Ok(())
}

/// Fails on the first upward edges found.
pub(crate) fn check() -> Result<()> {
    let crates = shell::root().join("crates");
    let mut edges = Vec::new();
    for entry in std::fs::read_dir(&crates)? {
        let dir = entry?.path();
        let Ok(manifest) = std::fs::read_to_string(dir.join("Cargo.toml")) else { continue };
        let layer = dir.file_name().context("a crate has a name")?.to_string_lossy().into_owned();
        let mut files = Vec::new();
        rust_files(&dir.join("src"), &mut files)?;
        let sources = files
            .into_iter()
            .map(|file| {
                let text = std::fs::read_to_string(&file)?;
                Ok((file.strip_prefix(shell::root())?.to_owned(), text))
            })
            .collect::<Result<Vec<_>>>()?;
        edges.extend(upward(&layer, &manifest, &sources)?);
    }
    if !edges.is_empty() {
        bail!("{}", edges.join("\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layers_only_look_down() {
        check().unwrap();
    }

    #[test]
    fn no_layer_is_below_itself() {
        for (layer, _) in LAYERS {
            assert!(!below(layer).unwrap().contains(layer), "{layer}");
        }
    }

    #[test]
    fn an_upward_dependency_is_found() {
        for manifest in [
            "[dependencies]\nkern.workspace = true\n",
            "[dependencies]\nkernmalloc-kern = \"1\"\n",
            "[dependencies]\nk = { package = \"kernmalloc-kern\", path = \"../kern\" }\n",
            "[dependencies.kern]\nworkspace = true\n",
            "[target.'cfg(unix)'.dependencies]\nkern = { workspace = true }\n",
        ] {
            assert_eq!(upward("vmem", manifest, &[]).unwrap().len(), 1, "{manifest}");
        }
        assert!(upward("vmem", "[dev-dependencies]\nkern.workspace = true\n", &[]).unwrap().is_empty());
        assert!(upward("kern", "[dependencies]\nplatform.workspace = true\n", &[]).unwrap().is_empty());
    }

    #[test]
    fn an_upward_use_is_found() {
        let edges = |text: &str| upward("memstat", "", &[("lib.rs".into(), text.to_owned())]).unwrap().len();
        assert_eq!(edges("use kern::zone::Zone;\n"), 1);
        assert_eq!(edges("    pub(crate) use ::kern;\n"), 1);
        assert_eq!(edges("use kernmalloc_hosted as hosted;\n"), 1);
        assert_eq!(edges("use abi::Header;\nuse std::path::Path;\nuse crate::kern;\n"), 0);
        assert_eq!(edges("mod kern;\nuse kern::Image;\n"), 0);
    }

    #[test]
    fn a_crate_without_a_place_is_refused() {
        assert!(upward("attic", "", &[]).is_err());
    }
}
