//! Every WGSL kernel in every variant through the front end, the validator, the limits of the smallest device that WebGPU allows, and the
//! writers for Metal and DX12. Needs no GPU.

use naga::back::{PipelineConstants, hlsl, msl};
use naga::{Module, ShaderStage};
use runahead::dtype::Scalar;
use runahead::gpu::{Caps, ShaderSpec, Tier, check};
use runahead::kernels::wgsl::{all_specs, coop_specs, subgroup_specs};

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

/// The smallest device that these activations need.
fn tier_of(spec: &ShaderSpec) -> Tier {
    if spec.header.starts_with("enable f16;") { Tier::F16 } else { Tier::Base }
}

fn specs(head_dims: &[usize]) -> Vec<ShaderSpec> {
    [Scalar::F32, Scalar::F16].into_iter().flat_map(|activation| all_specs(activation, head_dims)).collect()
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
    for (device, caps) in [("small", Caps { tier: tier_of(spec), ..small() }), ("large", large())] {
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
        let immediates_target = Some(hlsl::BindTarget::default());
        let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_2, immediates_target, ..Default::default() };
        let pipeline = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, spec.entry.to_owned())) };
        let mut text = String::new();
        hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None).map_err(|e| format!("{e:?}"))?;
        Ok(text)
    })
}

#[test]
fn every_kernel_and_variant_is_accepted_everywhere() {
    let specs = specs(&HEAD_DIMS);
    let wrong = specs.iter().flat_map(complaints).collect::<Vec<_>>();
    assert!(wrong.is_empty(), "{} of {} shaders:\n{}", wrong.len(), specs.len(), wrong.join("\n"));
}

/// What an NVIDIA GPU offers to Vulkan.
#[test]
fn matrix_unit_kernels_are_accepted() {
    let caps = Caps {
        tier: Tier::Coop,
        workgroup_memory_bytes: 48 << 10,
        max_workgroup_invocations: 1024,
        max_workgroup_size: [1024, 1024, 64],
        ..Caps::least()
    };
    let wrong = coop_specs().iter().filter_map(|spec| check(spec, &caps).err()).collect::<Vec<_>>();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let refused = coop_specs().iter().filter(|spec| check(spec, &caps.at_tier(Tier::Subgroup)).is_err()).count();
    assert_eq!(refused, coop_specs().len());
}

#[test]
fn subgroup_kernels_are_accepted_where_subgroups_are() {
    let mut wrong = Vec::new();
    for activation in [Scalar::F32, Scalar::F16] {
        for spec in subgroup_specs(activation, &HEAD_DIMS) {
            match check(&spec, &large()) {
                Err(error) => wrong.push(error.to_string()),
                Ok(shader) => {
                    for (language, written) in shader.with_module(|module| translate(&spec, module)) {
                        wrong.extend(written.err().map(|error| format!("{}: {language}: {error}", spec.name)));
                    }
                }
            }
            if check(&spec, &large().at_tier(Tier::F16)).is_ok() {
                wrong.push(format!("{} without subgroups", spec.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn names_tell_variants_apart() {
    // A few kernels have no activations: they are the same spec under the same name.
    let mut specs = specs(&HEAD_DIMS);
    specs.extend(subgroup_specs(Scalar::F16, &HEAD_DIMS));
    let keys = specs.iter().map(ShaderSpec::key).collect::<std::collections::HashSet<_>>();
    let mut names = specs.iter().map(|spec| &spec.name).collect::<Vec<_>>();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), keys.len());
}

/// Bounds checks are left out only where no index comes from data.
#[test]
fn kernels_that_read_indices_stay_checked() {
    for spec in specs(&[64]) {
        assert_eq!(spec.checked, spec.op.contains("var<storage, read> ids"), "{}", spec.name);
    }
}

#[test]
fn a_broken_shader_and_one_that_is_too_large_are_reported() {
    let specs = specs(&[64]);
    let norm = specs.iter().find(|spec| spec.entry == "norm").unwrap();
    assert!(complaints(norm).is_empty());
    let broken = ShaderSpec { header: "fn stray() -> u32 { return 1.0; }\n".to_owned(), ..norm.clone() };
    assert_eq!(complaints(&broken).len(), 2);
    let crowded = ShaderSpec { overrides: vec![("THREADS", 512.0)], ..norm.clone() };
    assert_eq!(complaints(&crowded).len(), 1);
    let unset = ShaderSpec { overrides: Vec::new(), ..norm.clone() };
    assert_eq!(complaints(&unset).len(), 2);
}
