//! Shader sources: assembled, parsed and validated once, and checked against the limits of the adapter that will run them.
//!
//! wgpu checks neither workgroup sizes nor workgroup memory that come from overrides, so we do; the same function runs over every kernel and
//! variant in a test that needs no GPU.

use std::hash::{DefaultHasher, Hash, Hasher};

use naga::back::PipelineConstants;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage, StorageAccess};

use super::caps::{Caps, Tier};
use crate::error::{Error, Result};

/// Bytes that a kernel's parameters may have: what every API has room for in the commands themselves.
pub(super) const MAX_PARAMS_BYTES: u32 = 128;

/// A shader's source and everything that makes it one variant rather than another.
#[derive(Clone, Debug)]
pub struct ShaderSpec {
    /// Kernel and variant, for errors and the cache.
    pub name: String,
    /// `enable` directives, aliases and constants; stands before all else.
    pub header: String,
    /// Sources without entry point.
    pub parts: Vec<&'static str>,
    /// The source that holds the entry point.
    pub op: &'static str,
    /// The entry point.
    pub entry: &'static str,
    /// Values of the `override`s.
    pub overrides: Vec<(&'static str, f64)>,
    /// Whether indices are bounds-checked in the shader. `false` only where every index follows from parameters that the host has validated.
    pub checked: bool,
}

impl ShaderSpec {
    /// Header, parts and op in a row.
    pub fn source(&self) -> String {
        let mut source = self.header.clone();
        for part in self.parts.iter().chain([&self.op]) {
            if !source.is_empty() && !source.ends_with('\n') {
                source.push('\n');
            }
            source.push_str(part);
        }
        source
    }

    /// Equal for equal shaders: the name, and a hash of all else.
    pub fn key(&self) -> String {
        let mut hash = DefaultHasher::new();
        (&self.header, &self.parts, self.op, self.entry, self.checked).hash(&mut hash);
        for (name, value) in &self.overrides {
            (name, value.to_bits()).hash(&mut hash);
        }
        format!("{} {:016x}", self.name, hash.finish())
    }
}

/// What a shader does with a storage binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    ReadWrite,
}

/// A shader that the front end and the validator have passed and that fits the capabilities it was checked against.
#[derive(Debug)]
pub struct CheckedShader {
    pub(super) module: Module,
    /// Size of the parameter struct, in bytes; 0 where there is none.
    pub params_bytes: u32,
    /// Storage bindings 0, 1, ….
    pub storage: Vec<Access>,
    /// With overrides resolved.
    pub workgroup_size: [u32; 3],
    /// With overrides resolved.
    pub workgroup_memory_bytes: u32,
}

impl CheckedShader {
    /// The module as naga's other back ends take it, with its validation; for tests that translate it.
    pub fn with_module<T>(&self, f: impl FnOnce(&Module) -> T) -> T {
        f(&self.module)
    }
}

/// Parses, validates and measures a shader against `caps`. No device is needed.
///
/// Bindings are the storage buffers of group 0, numbered from 0 without gaps. Parameters are the one `var<immediate>`, if there is one.
///
/// Errors: [`Error::Shader`] with the shader's name and the line, or the numbers that do not fit.
pub fn check(spec: &ShaderSpec, caps: &Caps) -> Result<CheckedShader> {
    let fail = |reason: String| Error::Shader { name: spec.name.clone(), reason };
    let source = spec.source();
    let capabilities = capabilities_of(caps.tier);

    let mut options = naga::front::wgsl::Options::new();
    options.capabilities = capabilities;
    let module = naga::front::wgsl::Frontend::new_with_options(options)
        .parse(&source)
        .map_err(|e| fail(e.emit_to_string(&source)))?;
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|e| fail(e.emit_to_string(&source)))?;

    let (params_bytes, storage) = bindings(&module).map_err(fail)?;
    let limit = caps.storage_buffers_per_stage;
    if storage.len() > limit as usize {
        return Err(fail(format!("{} storage bindings, {limit} are possible", storage.len())));
    }
    let (workgroup_size, workgroup_memory_bytes) = workgroup(spec, &module, &info).map_err(fail)?;
    fits(workgroup_size, workgroup_memory_bytes, caps).map_err(fail)?;
    Ok(CheckedShader { module, params_bytes, storage, workgroup_size, workgroup_memory_bytes })
}

fn capabilities_of(tier: Tier) -> Capabilities {
    let mut capabilities = Capabilities::empty();
    // `pack2x16float` and its kin: in every back end that wgpu reaches here (Vulkan, Metal, DX12).
    capabilities |= Capabilities::SHADER_FLOAT16_IN_FLOAT32 | Capabilities::IMMEDIATES;
    capabilities.set(Capabilities::SHADER_FLOAT16, tier >= Tier::F16);
    capabilities.set(Capabilities::SUBGROUP, tier >= Tier::Subgroup);
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, tier >= Tier::Coop);
    capabilities
}

/// Bytes of the parameters and the access of each storage binding.
fn bindings(module: &Module) -> Result<(u32, Vec<Access>), String> {
    let mut params = 0;
    let mut storage = Vec::new();
    for (_, var) in module.global_variables.iter() {
        if var.space == AddressSpace::Immediate {
            params = module.types[var.ty].inner.size(module.to_ctx());
        }
        let Some(at) = var.binding else { continue };
        let name = var.name.as_deref().unwrap_or("?");
        if at.group != 0 {
            return Err(format!("`{name}` is in binding group {}; only group 0 is used", at.group));
        }
        match var.space {
            AddressSpace::Storage { access } => {
                let access = if access.contains(StorageAccess::STORE) { Access::ReadWrite } else { Access::Read };
                storage.push((at.binding, access));
            }
            _ => return Err(format!("`{name}`: bindings are storage buffers")),
        }
    }
    storage.sort_by_key(|&(binding, _)| binding);
    if let Some((at, (binding, _))) = storage.iter().enumerate().find(|(at, (binding, _))| *binding != *at as u32) {
        return Err(format!("storage binding {binding} where {at} was expected"));
    }
    if params > MAX_PARAMS_BYTES {
        return Err(format!("{params} bytes of parameters, {MAX_PARAMS_BYTES} are possible"));
    }
    Ok((params, storage.into_iter().map(|(_, access)| access).collect()))
}

/// Workgroup size and bytes of workgroup memory of the entry point once the overrides have their values.
fn workgroup(spec: &ShaderSpec, module: &Module, info: &ModuleInfo) -> Result<([u32; 3], u32), String> {
    if !module.entry_points.iter().any(|e| e.name == spec.entry && e.stage == ShaderStage::Compute) {
        return Err(format!("there is no compute entry point `{}`", spec.entry));
    }
    let mut constants = PipelineConstants::default();
    constants.extend(spec.overrides.iter().map(|&(name, value)| (name.to_owned(), value)));
    let (module, info) = naga::back::pipeline_constants::process_overrides(
        module,
        info,
        Some((ShaderStage::Compute, spec.entry)),
        &constants,
    )
    .map_err(|e| format!("overrides: {e}"))?;
    let Some(index) = module.entry_points.iter().position(|e| e.name == spec.entry) else {
        return Err(format!("there is no compute entry point `{}`", spec.entry));
    };
    let used = info.get_entry_point(index);
    let mut bytes = 0u32;
    for (handle, var) in module.global_variables.iter() {
        if var.space == AddressSpace::WorkGroup && !used[handle].is_empty() {
            let size = module.types[var.ty].inner.try_size(module.to_ctx());
            // WebGPU counts each variable rounded up to 16 bytes.
            bytes = size
                .and_then(|size| size.checked_next_multiple_of(16))
                .and_then(|size| bytes.checked_add(size))
                .ok_or_else(|| format!("workgroup variable `{}` is too large", var.name.as_deref().unwrap_or("?")))?;
        }
    }
    Ok((module.entry_points[index].workgroup_size, bytes))
}

fn fits(size: [u32; 3], memory_bytes: u32, caps: &Caps) -> Result<(), String> {
    let limits = caps.max_workgroup_size;
    if size.iter().zip(limits).any(|(&n, limit)| n == 0 || n > limit) {
        return Err(format!("workgroup size {size:?}, {limits:?} is possible"));
    }
    let invocations = size.iter().map(|&n| u64::from(n)).product::<u64>();
    if invocations > u64::from(caps.max_workgroup_invocations) {
        return Err(format!(
            "{invocations} invocations in a workgroup, {} are possible",
            caps.max_workgroup_invocations
        ));
    }
    if memory_bytes > caps.workgroup_memory_bytes {
        return Err(format!("{memory_bytes} bytes of workgroup memory, {} are possible", caps.workgroup_memory_bytes));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OP: &str = "
        struct Params { rows: u32, width: u32, scale: f32 }
        override threads: u32;
        override tile: u32 = 8u;
        var<immediate> params: Params;
        @group(0) @binding(0) var<storage, read> x: array<elem>;
        @group(0) @binding(1) var<storage, read_write> out: array<elem>;
        var<workgroup> shared_tile: array<vec4<f32>, tile * tile>;
        var<workgroup> unused: array<f32, 100000>;
        @compute @workgroup_size(threads, 2) fn op(@builtin(local_invocation_index) i: u32) {
            shared_tile[i] = vec4f(elem_of(params.rows));
            workgroupBarrier();
            out[i] = x[i] + elem(shared_tile[0].x);
        }";

    fn spec(threads: f64, tile: f64) -> ShaderSpec {
        ShaderSpec {
            name: "op f32".to_owned(),
            header: "alias elem = f32;".to_owned(),
            parts: vec!["fn elem_of(n: u32) -> f32 { return f32(n); }"],
            op: OP,
            entry: "op",
            overrides: vec![("threads", threads), ("tile", tile)],
            checked: true,
        }
    }

    fn reason(spec: &ShaderSpec, caps: &Caps) -> String {
        match check(spec, caps) {
            Err(Error::Shader { name, reason }) if name == spec.name => reason,
            other => panic!("expected a refusal of {}: {other:?}", spec.name),
        }
    }

    #[test]
    fn sizes_and_bindings_follow_from_the_module_and_its_overrides() {
        let shader = check(&spec(32.0, 8.0), &Caps::least()).unwrap();
        assert_eq!(shader.params_bytes, 12);
        assert_eq!(shader.storage, [Access::Read, Access::ReadWrite]);
        assert_eq!(shader.workgroup_size, [32, 2, 1]);
        assert_eq!(shader.workgroup_memory_bytes, 8 * 8 * 16);
        let wider = check(&spec(128.0, 16.0), &Caps::least()).unwrap();
        assert_eq!((wider.workgroup_size, wider.workgroup_memory_bytes), ([128, 2, 1], 4096));
    }

    #[test]
    fn limits_are_those_of_the_given_capabilities() {
        let caps = Caps::least();
        assert!(reason(&spec(32.0, 33.0), &caps).contains("17424 bytes of workgroup memory, 16384 are possible"));
        let roomy = Caps { workgroup_memory_bytes: 32 << 10, ..caps.clone() };
        check(&spec(32.0, 33.0), &roomy).unwrap();
        assert!(reason(&spec(129.0, 8.0), &caps).contains("258 invocations in a workgroup, 256 are possible"));
        assert!(reason(&spec(512.0, 8.0), &caps).contains("workgroup size [512, 2, 1]"));
        let one = Caps { storage_buffers_per_stage: 1, ..caps };
        assert!(reason(&spec(32.0, 8.0), &one).contains("2 storage bindings, 1 are possible"));
    }

    #[test]
    fn errors_show_the_line() {
        let broken = ShaderSpec { parts: vec!["fn elem_of(n: u32) -> f32 {\n    return n;\n}"], ..spec(32.0, 8.0) };
        assert!(reason(&broken, &Caps::least()).contains("return n;"));
        let unknown = ShaderSpec { parts: vec![""], ..spec(32.0, 8.0) };
        let reason = reason(&unknown, &Caps::least());
        assert!(reason.contains("elem_of") && reason.contains("wgsl:12"), "{reason}");
    }

    #[test]
    fn overrides_must_be_known_and_complete() {
        let caps = Caps::least();
        let missing = ShaderSpec { overrides: vec![], ..spec(32.0, 8.0) };
        assert!(reason(&missing, &caps).contains("threads"));
        let unknown = ShaderSpec { overrides: vec![("threads", 1.0), ("speed", 2.0)], ..spec(32.0, 8.0) };
        assert!(reason(&unknown, &caps).contains("speed"));
        let other_entry = ShaderSpec { entry: "main", ..spec(32.0, 8.0) };
        assert!(reason(&other_entry, &caps).contains("`main`"));
    }

    #[test]
    fn bindings_are_storage_without_gaps() {
        let op = |op| ShaderSpec { op, entry: "op", overrides: vec![], ..spec(32.0, 8.0) };
        let cases = [
            ("@group(0) @binding(0) var<uniform> x: vec4u; @compute @workgroup_size(1) fn op() {}", "`x`"),
            (
                "var<immediate> p: u32; @group(0) @binding(2) var<storage> x: array<u32>;
                 @compute @workgroup_size(1) fn op() {}",
                "storage binding 2 where 0 was expected",
            ),
            (
                "var<immediate> p: u32; @group(1) @binding(0) var<storage> x: array<u32>;
                 @compute @workgroup_size(1) fn op() {}",
                "binding group 1",
            ),
            ("var<immediate> p: array<vec4u, 9>; @compute @workgroup_size(1) fn op() {}", "144 bytes of parameters"),
        ];
        for (source, expected) in cases {
            let reason = reason(&op(source), &Caps::least());
            assert!(reason.contains(expected), "{expected}: {reason}");
        }
    }

    #[test]
    fn a_tier_admits_its_own_extensions_only() {
        let f16 = ShaderSpec { header: "enable f16;\nalias elem = f16;".to_owned(), ..spec(32.0, 8.0) };
        let f16 = ShaderSpec { parts: vec!["fn elem_of(n: u32) -> f32 { return f32(elem(n)); }"], ..f16 };
        let subgroup =
            ShaderSpec { parts: vec!["fn elem_of(n: u32) -> f32 { return subgroupAdd(f32(n)); }"], ..spec(32.0, 8.0) };
        let at = |tier| Caps { tier, ..Caps::least() };
        for (spec, lowest) in [(f16, Tier::F16), (subgroup, Tier::Subgroup)] {
            for tier in Tier::ALL {
                let result = check(&spec, &at(tier));
                assert_eq!(result.is_ok(), tier >= lowest, "{tier:?}: {result:?}");
            }
        }
    }

    #[test]
    fn keys_differ_where_shaders_differ() {
        let a = spec(32.0, 8.0);
        let others = [
            spec(32.0, 16.0),
            ShaderSpec { checked: false, ..a.clone() },
            ShaderSpec { header: "alias elem = u32;".to_owned(), ..a.clone() },
            ShaderSpec { parts: vec![], ..a.clone() },
            ShaderSpec { op: "", ..a.clone() },
            ShaderSpec { name: "op f16".to_owned(), ..a.clone() },
        ];
        assert_eq!(a.key(), a.clone().key());
        for other in others {
            assert_ne!(a.key(), other.key(), "{other:?}");
        }
    }
}
