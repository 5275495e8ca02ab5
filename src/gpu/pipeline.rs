//! Compute pipelines: layouts derived from the checked module, shaders handed on as naga modules, everything cached.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::buffer::Owner;
use super::caps::Caps;
use super::compiling::{self, Compiling, DiskCache};
use super::native;
use super::shader::{Access, CheckedShader, ShaderSpec, check};
use crate::error::{Error, Result};

/// A compiled kernel variant.
pub struct Pipeline {
    pub(super) name: String,
    raw: Compiling,
    pub(super) layout: Arc<Layout>,
    pub(super) owner: Arc<Owner>,
    workgroup_size: [u32; 3],
}

impl Pipeline {
    /// Kernel and variant.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The driver's pipeline, once it is compiled.
    pub(super) fn raw(&self) -> Result<&wgpu::ComputePipeline> {
        self.raw.wait().map_err(|reason| Error::Shader { name: self.name.clone(), reason: reason.to_owned() })
    }

    /// Invocations of a workgroup in each dimension, overrides resolved.
    pub fn workgroup_size(&self) -> [u32; 3] {
        self.workgroup_size
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pipeline({})", self.name)
    }
}

/// Size of the parameters and kinds of the storage bindings: pipelines that agree in these share layouts, and so bind groups.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Signature {
    pub params_bytes: u32,
    pub storage: Vec<Access>,
}

pub(super) struct Layout {
    pub signature: Signature,
    pub id: usize,
    pub bindings: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
}

/// The pipelines and layouts of one device.
pub(super) struct Pipelines {
    owner: Arc<Owner>,
    made: Mutex<HashMap<String, Arc<Pipeline>>>,
    layouts: Mutex<HashMap<Signature, Arc<Layout>>>,
    disk: OnceLock<Arc<DiskCache>>,
}

impl Pipelines {
    pub fn new(owner: &Arc<Owner>) -> Self {
        Self { owner: owner.clone(), made: Mutex::default(), layouts: Mutex::default(), disk: OnceLock::new() }
    }

    /// Keeps what the driver compiles from now on.
    pub fn keep_on_disk(&self, cache: DiskCache) {
        let _ = self.disk.set(Arc::new(cache));
    }

    pub fn get(&self, key: &str) -> Option<Arc<Pipeline>> {
        lock(&self.made).get(key).cloned()
    }

    /// Keeps a pipeline. Two threads may compile the same one, since no lock is held meanwhile: the first stays.
    pub fn keep(&self, key: String, pipeline: Pipeline) -> Arc<Pipeline> {
        lock(&self.made).entry(key).or_insert_with(|| Arc::new(pipeline)).clone()
    }

    /// Checks the shader and has the driver begin to compile it. The caller watches for errors of the device, which the layout may bring.
    pub fn begin(&self, device: &wgpu::Device, caps: &Caps, spec: &ShaderSpec) -> Result<Pipeline> {
        let shader = check(spec, caps)?;
        let workgroup_size = shader.workgroup_size;
        let layout = self.layout(device, &shader);
        let (name, entry, overrides, checked) = (spec.name.clone(), spec.entry, spec.overrides.clone(), spec.checked);
        let (device, disk, pipeline_layout) = (device.clone(), self.disk.get().cloned(), layout.pipeline.clone());
        let body = move || {
            compiling::compile(&device, disk.as_ref(), |cache| {
                let source = wgpu::ShaderSource::Naga(Cow::Owned(shader.module));
                let desc = wgpu::ShaderModuleDescriptor { label: Some(&name), source };
                let module =
                    if checked { device.create_shader_module(desc) } else { native::trusted_module(&device, desc) };
                device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                    label: Some(&name),
                    layout: Some(&pipeline_layout),
                    module: &module,
                    entry_point: Some(entry),
                    compilation_options: wgpu::PipelineCompilationOptions {
                        constants: &overrides,
                        zero_initialize_workgroup_memory: false,
                    },
                    cache,
                })
            })
        };
        let raw = Compiling::begin(&spec.name, body)?;
        Ok(Pipeline { name: spec.name.clone(), raw, layout, owner: self.owner.clone(), workgroup_size })
    }

    fn layout(&self, device: &wgpu::Device, shader: &CheckedShader) -> Arc<Layout> {
        let signature = Signature { params_bytes: shader.params_bytes, storage: shader.storage.clone() };
        let mut layouts = lock(&self.layouts);
        let id = layouts.len();
        layouts.entry(signature.clone()).or_insert_with(|| Arc::new(new_layout(device, signature, id))).clone()
    }
}

fn new_layout(device: &wgpu::Device, signature: Signature, id: usize) -> Layout {
    let entry = |(binding, access): (u32, &Access)| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: *access == Access::Read },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    };
    let entries = (0..).zip(&signature.storage).map(entry).collect::<Vec<_>>();
    let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
    let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&bindings)],
        immediate_size: signature.params_bytes,
    });
    Layout { signature, id, bindings, pipeline }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
