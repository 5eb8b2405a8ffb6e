//! ImageNet-R: 30,000 renditions of 200 ImageNet classes. `path` is the folder extracted from `imagenet-r.tar`, with
//! one folder per class (`n01443537`, ...). The published 24,000/6,000 split is defined by `imagenet-r_train.yaml` and
//! `imagenet-r_test.yaml` of the published code.

use crate::data::splits::RandomSplitConfig;

cdl_core::register!(Stream {
    name: "imagenet_r",
    about: "ImageNet-R: 200 classes of art, cartoons, sketches; split by lists, or 80/20 by a seeded draw",
    citation: "Hendrycks et al., ICCV 2021, arXiv:2006.16241; split: Smith et al., CVPR 2023, arXiv:2211.13218",
    source: "its authors offer imagenet-r.tar (2.2 GB) at https://github.com/hendrycks/imagenet-r; the code there is under \
             the MIT licence, the images belong to their makers",
    config: RandomSplitConfig,
    build: |config: RandomSplitConfig, context: &_| config.stream("imagenet_r", context),
});
