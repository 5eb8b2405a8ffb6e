//! ImageNet-A: 7,500 natural images of 200 ImageNet classes that classifiers get wrong. `path` is the folder extracted
//! from `imagenet-a.tar`, with one folder per class (`n01498041`, ...).

use crate::data::splits::RandomSplitConfig;

cdl_core::register!(Stream {
    name: "imagenet_a",
    about: "ImageNet-A: 200 classes of adversarial natural images; split by lists, or 80/20 by a seeded draw",
    citation: "Hendrycks et al., CVPR 2021, arXiv:1907.07174",
    source: "its authors offer imagenet-a.tar (0.7 GB) at https://github.com/hendrycks/natural-adv-examples; the code there \
             is under the MIT licence, the images belong to their makers",
    config: RandomSplitConfig,
    build: |config: RandomSplitConfig, context: &_| config.stream("imagenet_a", context),
});
