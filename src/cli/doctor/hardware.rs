//! GPUs that are in the machine, whether or not a driver serves them, and what to do about those that none does.

use std::path::Path;

use runahead::engine::{DeviceId, DeviceInfo};

/// A GPU as the kernel sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// PCI address, `0000:01:00.0`.
    pci: String,
    maker: Maker,
    /// A device file that this user may not open.
    barred: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Maker {
    Nvidia,
    Amd,
    Intel,
    Other,
}

/// Something that is not there.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing {
    /// Whether it keeps hardware of this machine from being used.
    pub is_fault: bool,
    /// What, and the command that brings it.
    pub text: String,
}

/// GPUs of a Linux machine; on other systems drivers come with the system or the GPU, and nothing is found.
pub fn gpus() -> Vec<Gpu> {
    let mut gpus = Vec::new();
    for entry in entries("/sys/class/drm").filter(|name| name.starts_with("renderD")) {
        let device = Path::new("/sys/class/drm").join(&entry).join("device");
        let pci = std::fs::canonicalize(&device).ok().and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
        let maker = match std::fs::read_to_string(device.join("vendor")).unwrap_or_default().trim() {
            "0x10de" => Maker::Nvidia,
            "0x1002" => Maker::Amd,
            "0x8086" => Maker::Intel,
            _ => Maker::Other,
        };
        let file = format!("/dev/dri/{entry}");
        let opened = std::fs::File::options().read(true).write(true).open(&file);
        let barred = opened.is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied).then_some(file);
        gpus.extend(pci.map(|pci| Gpu { pci, maker, barred }));
    }
    // In containers, NVIDIA's GPUs come without render nodes.
    for pci in entries("/proc/driver/nvidia/gpus") {
        if !gpus.iter().any(|gpu| gpu.pci == pci) {
            gpus.push(Gpu { pci, maker: Maker::Nvidia, barred: None });
        }
    }
    gpus
}

/// Names in a folder; none where it cannot be read.
fn entries(folder: &str) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// What to say about `gpus` where `devices` are all that a driver serves.
pub fn missing(gpus: &[Gpu], devices: &[DeviceInfo]) -> Vec<Missing> {
    let served =
        |gpu: &&Gpu| devices.iter().any(|d| d.pci.as_ref().is_some_and(|pci| pci.eq_ignore_ascii_case(&gpu.pci)));
    let mut missing: Vec<Missing> = gpus
        .iter()
        .filter(|gpu| !served(gpu))
        // Display adapters of virtual machines and boards have render nodes, too, and no Vulkan to be had.
        .filter(|gpu| gpu.maker != Maker::Other)
        .map(|gpu| {
            let text = match (&gpu.barred, gpu.maker) {
                (Some(file), _) => format!("access to {file}: sudo usermod -aG render $USER, then log in again"),
                (None, Maker::Nvidia) => format!(
                    "a Vulkan driver for the NVIDIA GPU at {}: sudo apt-get install nvidia-driver (Debian's non-free section; in a container, run it \
                     with NVIDIA_DRIVER_CAPABILITIES=all)",
                    gpu.pci
                ),
                (None, _) => format!(
                    "a Vulkan driver for the GPU at {}: sudo apt-get install libvulkan1 mesa-vulkan-drivers",
                    gpu.pci
                ),
            };
            Missing { is_fault: true, text }
        })
        .collect();
    let none = devices.iter().all(|d| d.id == DeviceId::Cpu);
    if missing.is_empty() && none && cfg!(target_os = "linux") {
        let text = "a GPU, so the CPU does it all. A software GPU, for tests: sudo apt-get install libvulkan1 mesa-vulkan-drivers";
        missing.push(Missing { is_fault: false, text: text.to_owned() });
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(pci: &str, maker: Maker) -> Gpu {
        Gpu { pci: pci.to_owned(), maker, barred: None }
    }

    #[test]
    fn gpus_without_a_driver_are_faults_and_name_the_package() {
        let cpu: Vec<DeviceInfo> = runahead::engine::devices().into_iter().filter(|d| d.id == DeviceId::Cpu).collect();
        let nvidia = gpu("0000:0a:00.0", Maker::Nvidia);
        for (gpu, says) in [(nvidia.clone(), "nvidia-driver"), (gpu("0000:03:00.0", Maker::Amd), "mesa-vulkan-drivers")]
        {
            let told = missing(&[gpu], &cpu);
            assert!(told.len() == 1 && told[0].is_fault && told[0].text.contains(says), "{told:?}");
        }
        let barred = Gpu { barred: Some("/dev/dri/renderD128".to_owned()), ..nvidia.clone() };
        assert!(missing(&[barred], &cpu)[0].text.contains("usermod -aG render"));

        let mut served = cpu.clone();
        (served[0].id, served[0].pci) = (DeviceId::Gpu(0), Some("0000:0A:00.0".to_owned()));
        assert_eq!(missing(&[nvidia], &served), []);
        assert!(missing(&[], &cpu).iter().all(|m| !m.is_fault));
    }
}
