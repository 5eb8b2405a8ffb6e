//! Streams: data sets divided into tasks.

pub mod cifar;
pub mod domainnet;
pub mod embedded;
pub mod hub_images;
pub mod idx;
pub mod image_folder;
pub mod imagenet_a;
pub mod imagenet_r;
pub mod noise;
