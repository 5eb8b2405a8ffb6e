//! DomainNet: 345 classes in six styles, 586,575 images.

use cdl_core::prelude::*;

use crate::data::splits::{SplitConfig, Splits};

/// Settings of `domainnet`. `path` is a folder with one folder per domain (`clipart/aircraft_carrier/...`) and the
/// lists of the data set: `clipart_train.txt`, `clipart_test.txt` and so on. If `train_list` and `test_list` are set,
/// for instance to the published code's `domainnet_train.yaml`, they replace these lists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DomainnetConfig {
    /// Domains whose lists are read, such as `path/clipart_train.txt` and `path/clipart_test.txt`. Images are in
    /// folders `path/clipart/CLASS`; those of one class are merged over all domains. Not used if `train_list` and
    /// `test_list` are set. Default: all six.
    pub domains: Vec<Domain>,
    /// Folder, lists, tasks, subsets and transforms.
    #[serde(flatten)]
    pub images: SplitConfig,
}

/// Domain of DomainNet: a style of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Domain {
    /// Clip art.
    Clipart,
    /// Infographics.
    Infograph,
    /// Paintings.
    Painting,
    /// Drawings of the game Quick, Draw!.
    Quickdraw,
    /// Photographs.
    Real,
    /// Sketches.
    Sketch,
}

impl Default for DomainnetConfig {
    fn default() -> Self {
        use Domain::{Clipart, Infograph, Painting, Quickdraw, Real, Sketch};
        let domains = vec![Clipart, Infograph, Painting, Quickdraw, Real, Sketch];
        Self { domains, images: SplitConfig::default() }
    }
}

cdl_core::register!(Stream {
    name: "domainnet",
    about: "DomainNet: 345 classes in six styles; split by its lists or by other lists",
    citation: "Peng et al., ICCV 2019, arXiv:1812.01754",
    source: "its authors offer an archive for each domain at https://ai.bu.edu/M3SDA, for non-commercial research under its \
             fair-use notice",
    config: DomainnetConfig,
    build: build,
});

fn build(config: DomainnetConfig, context: &StreamContext<'_>) -> Result<Box<dyn TaskStream>> {
    let DomainnetConfig { domains, images } = config;
    images.stream("domainnet", context, |path| {
        if domains.is_empty() {
            return Err(Error::setting("domains", "[]", "expected at least one domain, or split lists"));
        }
        // Lists have the names of their domains in lower case.
        let list = |domain: &Domain, split: &str| path.join(format!("{domain:?}_{split}.txt").to_lowercase());
        let lists = |split: &str| domains.iter().map(|domain| list(domain, split)).collect::<Vec<_>>();
        Splits::read(path, &lists("train"), &lists("test"))
    })
}
