//! What a list shows, for the unary call and for its stream: newest first.

use cri_proto::runtime::v1 as cri;

use super::{Services, convert};

pub(super) fn sandboxes(services: &Services, filter: &cri::PodSandboxFilter) -> Vec<cri::PodSandbox> {
    let mut items: Vec<_> = services
        .pods
        .list()
        .iter()
        .map(|pod| pod.record())
        .filter(|record| convert::sandbox_fits(record, filter))
        .map(|record| convert::sandbox(&record))
        .collect();
    items.sort_by_key(|item| std::cmp::Reverse(item.created_at));
    items
}

pub(super) fn containers(services: &Services, filter: &cri::ContainerFilter) -> Vec<cri::Container> {
    let mut containers: Vec<_> = services
        .pods
        .containers()
        .list()
        .iter()
        .map(|container| container.record())
        .filter(|record| convert::container_fits(record, filter))
        .map(|record| convert::container(&record))
        .collect();
    containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    containers
}

pub(super) fn images(services: &Services, filter: Option<cri::ImageFilter>) -> Vec<cri::Image> {
    let wanted = filter.and_then(|filter| filter.image).map(|image| image.image);
    let images = services.images.list(wanted.as_deref().filter(|wanted| !wanted.is_empty()));
    images.iter().map(|image| image.to_cri()).collect()
}
