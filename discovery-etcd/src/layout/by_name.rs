//! Chooses a layout by name, for a URL or a configuration file.

use std::sync::Arc;

use discovery_core::Error;

use super::{
    EtcdNaming, Layout, Plain, ToadOcr,
    go_json::{excerpt, invalid},
};

/// The options of layouts that were set by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct LayoutOptions {
    pub(crate) name: Option<String>,
    pub(crate) key_template: Option<String>,
    pub(crate) metadata_as_object: Option<bool>,
    pub(crate) deeper_paths: Option<bool>,
}

/// Returns the layout of these options, or `None` if there are none.
///
/// # Errors
///
/// `InvalidInput` for a name that is not known, and for an option of another layout.
pub(crate) fn by_name(options: &LayoutOptions) -> Result<Option<Arc<dyn Layout>>, Error> {
    let LayoutOptions { name, key_template, metadata_as_object, deeper_paths } = options;
    let is_unset = name.is_none() && key_template.is_none() && metadata_as_object.is_none() && deeper_paths.is_none();
    if is_unset {
        return Ok(None);
    }
    let name = name.as_deref().unwrap_or(ETCD_NAMING);
    let layout: Arc<dyn Layout> = match name {
        ETCD_NAMING => {
            let mut layout = EtcdNaming::default();
            if *metadata_as_object == Some(true) {
                layout = layout.metadata_as_object();
            }
            if *deeper_paths == Some(true) {
                layout = layout.deeper_paths();
            }
            Arc::new(layout)
        }
        PLAIN => match key_template {
            Some(template) => Arc::new(Plain::with_key(template)?),
            None => Arc::new(Plain::new()),
        },
        TOADOCR => Arc::new(ToadOcr::default()),
        other => {
            let shown = excerpt(other);
            return Err(invalid(format!("invalid layout \"{shown}\": allowed are {ETCD_NAMING}, {PLAIN}, {TOADOCR}")));
        }
    };
    for (option, is_set, owner) in [
        ("key_template", key_template.is_some(), PLAIN),
        ("metadata_as_object", metadata_as_object.is_some(), ETCD_NAMING),
        ("deeper_paths", deeper_paths.is_some(), ETCD_NAMING),
    ] {
        if is_set && owner != name {
            return Err(invalid(format!("invalid {option}: it is an option of the layout {owner}, not of {name}")));
        }
    }
    Ok(Some(layout))
}

const ETCD_NAMING: &str = "etcd-naming";
const PLAIN: &str = "plain";
const TOADOCR: &str = "toadocr";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_its_options_choose_a_layout() {
        let options = |name: &str| LayoutOptions { name: Some(name.to_owned()), ..LayoutOptions::default() };
        assert!(by_name(&LayoutOptions::default()).unwrap().is_none());
        for (name, debug) in [(ETCD_NAMING, "EtcdNaming"), (PLAIN, "Plain"), (TOADOCR, "ToadOcr")] {
            let layout = by_name(&options(name)).unwrap().unwrap();
            assert!(format!("{layout:?}").starts_with(debug));
        }
        let said = |options: &LayoutOptions| by_name(options).unwrap_err().to_string();
        assert!(said(&options("kratos")).contains("allowed are etcd-naming, plain, toadocr"));
        let stray = LayoutOptions { key_template: Some("{service}/{id}".to_owned()), ..LayoutOptions::default() };
        assert!(said(&stray).contains("option of the layout plain, not of etcd-naming"));
        let stray = LayoutOptions { deeper_paths: Some(true), ..options(TOADOCR) };
        assert!(said(&stray).contains("option of the layout etcd-naming, not of toadocr"));
    }
}
