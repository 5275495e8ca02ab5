//! Every WGSL kernel in every variant through the front end, the validator, the limits of the smallest device that WebGPU allows, and the
//! writers for Metal and DX12. Needs no GPU.

use naga::back::{PipelineConstants, hlsl, msl};
use naga::{Module, ShaderStage};
use runahead::gpu::{Caps, ShaderSpec, Tier, check};
use runahead::kernels::wgsl::all_specs;

/// The sizes of known models, the smallest, and odd multiples of 4.
const HEAD_DIMS: [usize; 14] = [4, 16, 20, 32, 36, 64, 68, 80, 96, 100, 112, 128, 192, 256];

/// What WebGPU promises: 16 KiB of workgroup memory, 256 invocations, 8 storage buffers.
fn small() -> Caps {
    let caps = Caps::least();
    assert_eq!(
        (caps.workgroup_memory_bytes, caps.max_workgroup_invocations, caps.storage_buffers_per_stage),
        (16384, 256, 8)
    );
    caps
}

fn large() -> Caps {
    Caps {
        tier: Tier::Subgroup,
        workgroup_memory_bytes: 64 << 10,
        max_workgroup_invocations: 1024,
        max_workgroup_size: [1024, 1024, 64],
        ..Caps::least()
    }
}

/// Everything that is wrong with a shader.
fn complaints(spec: &ShaderSpec) -> Vec<String> {
    let mut wrong = Vec::new();
    for (device, caps) in [("small", small()), ("large", large())] {
        match check(spec, &caps) {
            Err(error) => wrong.push(format!("{device} device: {error}")),
            Ok(shader) if device == "small" => {
                for (language, written) in shader.with_module(|module| translate(spec, module)) {
                    if let Err(error) = written {
                        wrong.push(format!("{}: {language}: {error}", spec.name));
                    }
                }
            }
            Ok(_) => {}
        }
    }
    wrong
}

fn translate(spec: &ShaderSpec, module: &Module) -> [(&'static str, Result<String, String>); 2] {
    [("MSL", to_msl(spec, module)), ("HLSL", to_hlsl(spec, module))]
}

fn with_overrides<T>(
    spec: &ShaderSpec,
    module: &Module,
    write: impl FnOnce(&Module, &naga::valid::ModuleInfo) -> Result<T, String>,
) -> Result<T, String> {
    let mut validator =
        naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all());
    let info = validator.validate(module).map_err(|e| format!("{e:?}"))?;
    let mut constants = PipelineConstants::default();
    constants.extend(spec.overrides.iter().map(|&(name, value)| (name.to_owned(), value)));
    let entry = Some((ShaderStage::Compute, spec.entry));
    let (module, info) = naga::back::pipeline_constants::process_overrides(module, &info, entry, &constants)
        .map_err(|e| format!("{e:?}"))?;
    write(&module, &info)
}

fn to_msl(spec: &ShaderSpec, module: &Module) -> Result<String, String> {
    with_overrides(spec, module, |module, info| {
        let options = msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
        let (text, translation) = msl::write_string(module, info, &options, &msl::PipelineOptions::default())
            .map_err(|e| format!("{e:?}"))?;
        translation.entry_point_names.into_iter().collect::<Result<Vec<_>, _>>().map_err(|e| format!("{e:?}"))?;
        Ok(text)
    })
}

fn to_hlsl(spec: &ShaderSpec, module: &Module) -> Result<String, String> {
    with_overrides(spec, module, |module, info| {
        let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..Default::default() };
        let pipeline = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, spec.entry.to_owned())) };
        let mut text = String::new();
        hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None).map_err(|e| format!("{e:?}"))?;
        Ok(text)
    })
}

#[test]
fn every_kernel_and_variant_is_accepted_everywhere() {
    let specs = all_specs(&HEAD_DIMS);
    let wrong = specs.iter().flat_map(complaints).collect::<Vec<_>>();
    assert!(wrong.is_empty(), "{} of {} shaders:\n{}", wrong.len(), specs.len(), wrong.join("\n"));
}

#[test]
fn names_tell_variants_apart() {
    let specs = all_specs(&HEAD_DIMS);
    let mut names = specs.iter().map(|spec| &spec.name).collect::<Vec<_>>();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), specs.len());
}

/// Bounds checks are left out only where no index comes from data.
#[test]
fn kernels_that_read_indices_stay_checked() {
    for spec in all_specs(&[64]) {
        assert_eq!(spec.checked, spec.op.contains("var<storage, read> ids"), "{}", spec.name);
    }
}

#[test]
fn a_broken_shader_and_one_that_is_too_large_are_reported() {
    let specs = all_specs(&[64]);
    let norm = specs.iter().find(|spec| spec.entry == "norm").unwrap();
    assert!(complaints(norm).is_empty());
    let broken = ShaderSpec { header: "fn stray() -> u32 { return 1.0; }\n".to_owned(), ..norm.clone() };
    assert_eq!(complaints(&broken).len(), 2);
    let crowded = ShaderSpec { overrides: vec![("THREADS", 512.0)], ..norm.clone() };
    assert_eq!(complaints(&crowded).len(), 1);
    let unset = ShaderSpec { overrides: Vec::new(), ..norm.clone() };
    assert_eq!(complaints(&unset).len(), 2);
}
