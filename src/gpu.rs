//! Compute devices through wgpu: adapters, buffers, checked shaders, pipelines, and work as a value.
//!
//! The one place that knows wgpu, naga and the drivers below them; what the numbers in a buffer mean is known to the layers above.
//!
//! Contract. [`enumerate`] lists [`GpuAdapter`]s; [`GpuAdapter::open`] gives a [`Gpu`], and two opens give two independent devices. A
//! [`Recording`] is a value: it touches no device until [`Gpu::submit`]. Submissions of one device run strictly in order, each sees the writes of
//! those before it, and a [`Gpu::write`] is seen by every later submission. Only [`Gpu::wait`], [`Gpu::collect`] and a write of many megabytes
//! block; the first two under the caller's limit and cancel. Every failure of the driver comes back as an [`Error`](crate::Error), a lost device
//! as [`Error::AdapterLost`](crate::Error::AdapterLost).

mod adapter;
mod bind_groups;
mod buffer;
mod caps;
mod compiling;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod info;
mod native;
mod peer;
mod pipeline;
mod readback;
mod recorder;
mod shader;
mod timing;
mod transfer;

pub use adapter::{GpuAdapter, enumerate};
pub use buffer::{Binding, Buffer};
pub use caps::{Caps, CoopScalar, CoopShape, Tier};
#[cfg(feature = "cuda")]
pub use cuda::{Kernel, Launch, MatMul, Mixed, Module, cuda_versions};
pub use device::{Gpu, Submission};
pub use info::{GpuInfo, GpuKind, Opening, Transfers};
pub use native::{HostMemory, copy_bytes};
pub use peer::PeerMemory;
pub use pipeline::Pipeline;
pub use readback::Download;
pub use recorder::Recording;
pub use shader::{Access, CheckedShader, ShaderSpec, check};
pub use timing::{Stretch, Timing};
pub use transfer::{Fetch, HostCopy};

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::cancel::{Cancel, Wait};
    use crate::error::Error;

    const fn assert_send<T: Send>() {}
    const fn assert_send_sync<T: Send + Sync>() {}
    const _: () = {
        assert_send_sync::<Gpu>();
        assert_send_sync::<GpuAdapter>();
        assert_send_sync::<Buffer>();
        assert_send_sync::<Pipeline>();
        assert_send_sync::<Submission>();
        assert_send::<Recording>();
        assert_send::<Download>();
    };

    pub(crate) fn adapter() -> GpuAdapter {
        let first = enumerate().into_iter().next();
        first.expect("no Vulkan, Metal or DX12 adapter; Debian and Ubuntu: apt install mesa-vulkan-drivers libvulkan1")
    }

    pub(crate) fn gpu() -> Gpu {
        adapter().open().unwrap()
    }

    pub(crate) fn wait() -> Wait {
        Wait::new(&Cancel::new())
    }

    pub(crate) fn double_spec() -> ShaderSpec {
        ShaderSpec {
            name: "double".to_owned(),
            header: "alias elem = f32;\n".to_owned(),
            parts: vec!["fn twice(x: elem) -> elem { return x + x; }"],
            op: "struct Params { n: u32 }
                override width: u32 = 1u;
                var<immediate> params: Params;
                @group(0) @binding(0) var<storage, read_write> data: array<elem>;
                @compute @workgroup_size(width) fn double(@builtin(global_invocation_id) at: vec3u) {
                    if at.x < params.n { data[at.x] = twice(data[at.x]); }
                }",
            entry: "double",
            overrides: vec![("width", 16.0)],
            checked: true,
        }
    }

    pub(crate) fn double(recording: &mut Recording, pipeline: &Arc<Pipeline>, buffer: &Buffer, n: u32) {
        let grid = [n.div_ceil(16), 1, 1];
        recording.dispatch(pipeline, &n.to_ne_bytes(), &[Binding::whole(buffer)], grid).unwrap();
    }

    pub(crate) fn read(gpu: &Gpu, buffer: &Buffer, range: std::ops::Range<u64>) -> Vec<u8> {
        let mut recording = gpu.recording();
        let download = recording.download(buffer, range).unwrap();
        let submission = gpu.submit(recording).unwrap();
        let mut out = Vec::new();
        gpu.collect(download, &submission, &wait(), &mut |bytes| out.extend_from_slice(bytes)).unwrap();
        out
    }

    fn read_f32(gpu: &Gpu, buffer: &Buffer) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&read(gpu, buffer, 0..buffer.bytes()))
    }

    #[test]
    fn bytes_come_back_as_written_at_odd_sizes() {
        let gpu = gpu();
        for n in [1usize, 3, 4, 7, 100, 4097, 65_537, 9_000_001] {
            let bytes = (0..n).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>();
            let buffer = gpu.buffer("bytes", n as u64).unwrap();
            assert!(read(&gpu, &buffer, 0..n as u64).iter().all(|&b| b == 0), "{n} bytes were not zeroed");
            gpu.write(&buffer, 0, &bytes).unwrap();
            assert!(read(&gpu, &buffer, 0..n as u64) == bytes, "{n} bytes");
            let part = n / 3..n - n / 5;
            assert!(read(&gpu, &buffer, part.start as u64..part.end as u64) == bytes[part], "a part of {n} bytes");
        }
        let empty = gpu.buffer("empty", 0).unwrap();
        assert!(read(&gpu, &empty, 0..0).is_empty());
    }

    #[test]
    fn a_timed_submission_tells_when_its_parts_ran() {
        let gpu = gpu();
        let pipeline = gpu.pipeline(&double_spec()).unwrap();
        let buffer = gpu.buffer("data", 4096).unwrap();
        let mut before = Duration::ZERO;
        for copies in [true, false] {
            let mut recording = gpu.recording();
            let timing = recording.timed();
            for tag in [0, 0, 7, 7, 0] {
                recording.tag(tag);
                double(&mut recording, &pipeline, &buffer, 1024);
            }
            let _ignored = copies.then(|| recording.download(&buffer, 0..4096).unwrap());
            let submission = gpu.submit(recording).unwrap();
            let stretches = gpu.times(&timing, &submission, &wait()).unwrap();
            let tags = [Some(0), Some(7), Some(0), None];
            assert_eq!(stretches.iter().map(|s| s.tag).collect::<Vec<_>>(), tags[..3 + usize::from(copies)]);
            for stretch in &stretches {
                assert!(before <= stretch.start && stretch.start <= stretch.end, "{stretches:?}");
                before = stretch.end;
            }
        }
        // Nothing to time, and nothing that was submitted.
        let mut recording = gpu.recording();
        let timing = recording.timed();
        recording.tag(1);
        assert!(gpu.times(&timing, &gpu.submit(recording).unwrap(), &wait()).unwrap().is_empty());
        let (mut never, submission) = (gpu.recording(), gpu.submit(gpu.recording()).unwrap());
        assert!(gpu.times(&never.timed(), &submission, &wait()).unwrap().is_empty());
    }

    #[test]
    fn shared_buffers_are_buffers_whatever_the_device_was_opened_with() {
        let adapter = adapter();
        for transfers in [Transfers::None, Transfers::Beside, Transfers::Anywhere] {
            for export in [false, true] {
                let gpu = adapter.open_with(Opening { transfers, export }).unwrap();
                assert!(export || !gpu.opened_with().export);
                let buffer = gpu.shared_buffer("data", 4 * 19).unwrap();
                assert!(read_f32(&gpu, &buffer).iter().all(|&x| x == 0.0), "not cleared");
                gpu.write(&buffer, 0, bytemuck::cast_slice(&[1.5f32; 19])).unwrap();
                let mut recording = gpu.recording();
                double(&mut recording, &gpu.pipeline(&double_spec()).unwrap(), &buffer, 18);
                gpu.submit(recording).unwrap();
                let expected = [[3.0; 18].as_slice(), &[1.5]].concat();
                assert_eq!(read_f32(&gpu, &buffer), expected, "{transfers:?}, export {export}");
                let limit = gpu.caps().max_buffer_bytes;
                assert!(matches!(gpu.shared_buffer("K/V", limit + 1), Err(Error::Memory { .. })));
            }
        }
    }

    #[test]
    fn a_write_of_many_pieces_arrives_whole() {
        let gpu = gpu();
        let words = (0..20u32 << 20).collect::<Vec<_>>();
        let bytes = bytemuck::cast_slice::<u32, u8>(&words);
        let buffer = gpu.buffer("words", bytes.len() as u64).unwrap();
        gpu.write(&buffer, 0, bytes).unwrap();
        assert!(read(&gpu, &buffer, 0..buffer.bytes()) == bytes);
    }

    #[test]
    fn a_thousand_dispatches_see_each_others_writes() {
        let gpu = gpu();
        let pipeline = gpu.pipeline(&double_spec()).unwrap();
        let (a, b) = (gpu.buffer("a", 4 * 37).unwrap(), gpu.buffer("b", 4 * 37).unwrap());
        let smallest = f32::MIN_POSITIVE;
        gpu.write(&a, 0, bytemuck::cast_slice(&[smallest; 37])).unwrap();
        let mut recording = gpu.recording();
        for i in 0..1000u32 {
            // Fewer and fewer elements, so that each dispatch's own parameters show; the last of five is doubled 200 times in all.
            let buffer = if i % 5 == 0 { &a } else { &b };
            double(&mut recording, &pipeline, buffer, 37 - i / 100);
        }
        let early = recording.download(&a, 0..4 * 37).unwrap();
        recording.copy(&a, 0, &b, 0, 4 * 37).unwrap();
        double(&mut recording, &pipeline, &b, 37);
        assert_eq!(recording.len(), 1003);
        let submission = gpu.submit(recording).unwrap();
        let mut values = Vec::new();
        let read = &mut |bytes: &[u8]| values = bytemuck::pod_collect_to_vec::<u8, f32>(bytes);
        gpu.collect(early, &submission, &wait(), read).unwrap();
        // Element 27 + k misses the last k hundreds of dispatches, of which a fifth were on `a`.
        let times = |element: i32| 200 - 20 * (element - 27).max(0);
        let expected = (0..37)
            .map(|element| smallest * 2f32.powi(times(element).min(100)) * 2f32.powi((times(element) - 100).max(0)));
        let expected = expected.collect::<Vec<_>>();
        assert_eq!(values, expected);
        assert_eq!(read_f32(&gpu, &a), expected);
        assert_eq!(read_f32(&gpu, &b), expected.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
    }

    #[test]
    fn threads_look_for_adapters_and_open_them_at_the_same_time() {
        let name = adapter().info().name.clone();
        let look = || {
            for _ in 0..3 {
                let gpu = gpu();
                let words: Vec<f32> = (0..64).map(|i| i as f32).collect();
                let buffer = gpu.buffer("words", 256).unwrap();
                gpu.write(&buffer, 0, bytemuck::cast_slice(&words)).unwrap();
                assert_eq!((&gpu.info().name, read_f32(&gpu, &buffer)), (&name, words));
            }
        };
        std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(look))));
    }

    #[test]
    fn two_devices_on_one_adapter_keep_apart() {
        let adapter = adapter();
        let (a, b) = (adapter.open().unwrap(), adapter.open().unwrap());
        let (on_a, on_b) = (a.buffer("a", 64).unwrap(), b.buffer("b", 64).unwrap());
        a.write(&on_a, 0, bytemuck::cast_slice(&[1.0f32; 16])).unwrap();
        b.write(&on_b, 0, bytemuck::cast_slice(&[10.0f32; 16])).unwrap();
        for (gpu, buffer) in [(&a, &on_a), (&b, &on_b)] {
            let mut recording = gpu.recording();
            double(&mut recording, &gpu.pipeline(&double_spec()).unwrap(), buffer, 16);
            gpu.submit(recording).unwrap();
        }
        assert_eq!(read_f32(&a, &on_a), [2.0; 16]);
        assert_eq!(read_f32(&b, &on_b), [20.0; 16]);
        drop(a);
        assert_eq!(read_f32(&b, &on_b), [20.0; 16]);
    }

    #[test]
    fn what_belongs_to_another_device_is_refused() {
        let adapter = adapter();
        let (a, b) = (adapter.open().unwrap(), adapter.open().unwrap());
        let (on_a, on_b) = (a.buffer("a", 64).unwrap(), b.buffer("b", 64).unwrap());
        let pipeline = a.pipeline(&double_spec()).unwrap();
        assert_eq!(on_a.id(), on_b.id());
        let n = 16u32.to_ne_bytes();
        let refused = [
            b.write(&on_a, 0, &n),
            a.recording().dispatch(&pipeline, &n, &[Binding::whole(&on_b)], [1, 1, 1]),
            b.recording().dispatch(&pipeline, &n, &[Binding::whole(&on_b)], [1, 1, 1]),
            a.recording().copy(&on_a, 0, &on_b, 0, 4),
            a.recording().download(&on_b, 0..4).map(drop),
            a.submit(b.recording()).map(drop),
        ];
        for (i, error) in refused.into_iter().enumerate() {
            assert!(error.as_ref().is_err_and(|e| e.to_string().contains("another device")), "{i}: {error:?}");
        }
    }

    #[test]
    fn threads_submit_at_the_same_time() {
        let gpu = &gpu();
        std::thread::scope(|scope| {
            for thread in 0..3u32 {
                scope.spawn(move || {
                    let pipeline = gpu.pipeline(&double_spec()).unwrap();
                    let buffer = gpu.buffer("data", 4 * 50).unwrap();
                    for round in 0..20u32 {
                        let first = (1 + thread + round) as f32;
                        gpu.write(&buffer, 0, bytemuck::cast_slice(&[first; 50])).unwrap();
                        let mut recording = gpu.recording();
                        // Different parameters on each thread: mixed up ones would show.
                        (0..3).for_each(|_| double(&mut recording, &pipeline, &buffer, 10 + thread));
                        let download = recording.download(&buffer, 0..200).unwrap();
                        let submission = gpu.submit(recording).unwrap();
                        let check = &mut |bytes: &[u8]| {
                            let values = bytemuck::pod_collect_to_vec::<u8, f32>(bytes);
                            let (doubled, left) = values.split_at(10 + thread as usize);
                            assert!(doubled.iter().all(|&x| x == 8.0 * first) && left.iter().all(|&x| x == first));
                        };
                        gpu.collect(download, &submission, &wait(), check).unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn too_large_a_buffer_is_an_error() {
        let gpu = gpu();
        let limit = gpu.caps().max_buffer_bytes;
        for bytes in [limit + 1, u64::MAX - 3, u64::MAX] {
            let error = gpu.buffer("K/V", bytes);
            assert!(
                matches!(&error, Err(Error::Memory { needed, what, .. }) if *needed == bytes && what == "K/V"),
                "{error:?}"
            );
        }
        gpu.buffer("small", 4).unwrap();
    }

    #[test]
    fn a_bad_shader_is_an_error_with_its_name() {
        let gpu = gpu();
        let spec =
            ShaderSpec { name: "broken".to_owned(), parts: vec!["fn twice(x: f32) { return x; }"], ..double_spec() };
        assert!(matches!(gpu.pipeline(&spec), Err(Error::Shader { name, .. }) if name == "broken"));
        gpu.pipeline(&double_spec()).unwrap();
    }

    #[test]
    fn what_the_driver_compiled_is_kept_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let run = || {
            let gpu = gpu();
            gpu.keep_pipelines(folder.path());
            let pipeline = gpu.pipeline(&double_spec()).unwrap();
            let buffer = gpu.buffer("data", 64).unwrap();
            gpu.write(&buffer, 0, bytemuck::cast_slice(&[1.5f32; 16])).unwrap();
            let mut recording = gpu.recording();
            double(&mut recording, &pipeline, &buffer, 16);
            gpu.submit(recording).unwrap();
            assert_eq!(read_f32(&gpu, &buffer), [3.0; 16]);
        };
        run();
        let files = || std::fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().path()).collect::<Vec<_>>();
        let [file] = &files()[..] else { panic!("one file for the adapter") };
        let first = std::fs::read(file).unwrap();
        assert!(first.len() > 64);
        run();
        assert_eq!(files(), std::slice::from_ref(file));
        // A cut file, noise, and a folder in its place are passed over.
        std::fs::write(file, &first[..first.len() - 1]).unwrap();
        run();
        std::fs::write(file, [7; 5000]).unwrap();
        run();
        std::fs::remove_file(file).unwrap();
        std::fs::create_dir(file).unwrap();
        run();
    }

    #[test]
    fn unchecked_shaders_run_too_and_pipelines_are_cached() {
        let gpu = gpu();
        let unchecked = ShaderSpec { checked: false, ..double_spec() };
        let pipeline = gpu.pipeline(&unchecked).unwrap();
        assert!(Arc::ptr_eq(&pipeline, &gpu.pipeline(&unchecked).unwrap()));
        assert!(!Arc::ptr_eq(&pipeline, &gpu.pipeline(&double_spec()).unwrap()));
        assert_eq!(pipeline.workgroup_size(), [16, 1, 1]);
        let buffer = gpu.buffer("data", 64).unwrap();
        gpu.write(&buffer, 0, bytemuck::cast_slice(&[1.5f32; 16])).unwrap();
        let mut recording = gpu.recording();
        double(&mut recording, &pipeline, &buffer, 16);
        gpu.submit(recording).unwrap();
        assert_eq!(read_f32(&gpu, &buffer), [3.0; 16]);
    }

    #[test]
    fn dispatches_that_do_not_fit_are_refused_while_recording() {
        let gpu = gpu();
        let pipeline = gpu.pipeline(&double_spec()).unwrap();
        let buffer = gpu.buffer("data", 4096).unwrap();
        let all = Binding::whole(&buffer);
        let n = 1u32.to_ne_bytes();
        let beyond = gpu.caps().max_workgroups_per_dim + 1;
        type Case<'a> = (&'a [u8], &'a [Binding<'a>], [u32; 3], &'a str);
        let cases: [Case<'_>; 7] = [
            (&n, &[all], [1, beyond, 1], "grid"),
            (&n[..3], &[all], [1, 1, 1], "bytes of parameters"),
            (&n, &[], [1, 1, 1], "storage bindings"),
            (&n, &[all, all], [1, 1, 1], "storage bindings"),
            (&n, &[Binding { offset: 4, bytes: 8, ..all }], [1, 1, 1], "multiples of"),
            (&n, &[Binding { bytes: 0, ..all }], [1, 1, 1], "bytes at 0"),
            (&n, &[Binding { bytes: 4097, ..all }], [1, 1, 1], "not inside"),
        ];
        let mut recording = gpu.recording();
        for (params, bindings, grid, reason) in cases {
            let error = recording.dispatch(&pipeline, params, bindings, grid);
            assert!(error.as_ref().is_err_and(|e| e.to_string().contains(reason)), "{reason}: {error:?}");
        }
        recording.dispatch(&pipeline, &n, &[all], [0, 1, 1]).unwrap();
        assert!(recording.is_empty());
        assert!(recording.copy(&buffer, 0, &buffer, 128, 64).is_err());
        assert!(recording.download(&buffer, 4000..4097).is_err());
        assert!(gpu.write(&buffer, 2, &n).is_err() && gpu.write(&buffer, 0, &n[..3]).is_err());
        assert!(gpu.write(&buffer, u64::MAX - 3, &n).is_err());
    }

    #[test]
    fn a_download_without_a_submit_or_a_collect_does_no_harm() {
        let gpu = gpu();
        let buffer = gpu.buffer("data", 64).unwrap();
        let (mut recording, mut never) = (gpu.recording(), gpu.recording());
        let ignored = recording.download(&buffer, 0..64).unwrap();
        let orphan = never.download(&buffer, 0..64).unwrap();
        let submission = gpu.submit(recording).unwrap();
        drop((ignored, never));
        assert!(matches!(gpu.collect(orphan, &submission, &wait(), &mut |_| ()), Err(Error::Adapter { .. })));
        assert_eq!(read(&gpu, &buffer, 0..64), [0; 64]);
    }

    #[test]
    fn a_cancel_ends_a_wait_within_100_ms() {
        let gpu = gpu();
        let spec = ShaderSpec {
            name: "slow".to_owned(),
            parts: vec![
                "fn twice(x: f32) -> f32 {
                    var y = x;
                    for (var i = 0u; i < 10000u; i++) { y = y * 0.999 + 1.0; }
                    return y;
                }",
            ],
            ..double_spec()
        };
        let pipeline = gpu.pipeline(&spec).unwrap();
        let buffer = gpu.buffer("data", 4 << 16).unwrap();
        let run = |n_dispatches: u32| {
            let mut recording = gpu.recording();
            (0..n_dispatches).for_each(|_| double(&mut recording, &pipeline, &buffer, 1 << 16));
            gpu.submit(recording).unwrap()
        };
        // As many as take long enough to be timed, whatever the device: a fast one is through with a few before the host has looked.
        let (mut n_timed, mut seconds) = (1, 0.0);
        while seconds < 0.05 {
            n_timed *= 4;
            let start = Instant::now();
            gpu.wait(&run(n_timed), &wait()).unwrap();
            seconds = start.elapsed().as_secs_f64();
        }
        // Half a second and more of short dispatches: no watchdog minds.
        let submission = run((f64::from(n_timed) / seconds).ceil() as u32);
        let wait = wait();
        let cancel = wait.cancel.clone();
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            cancel.cancel();
            Instant::now()
        });
        let ended = gpu.wait(&submission, &wait).map(|()| Instant::now());
        let now = Instant::now();
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
        let late = now - canceller.join().unwrap();
        // 100 ms are promised; one who shares two cores with a software GPU may be given none for as long.
        assert!(late < Duration::from_millis(400), "{late:?}");
    }

    #[test]
    fn memory_is_told_where_vulkan_tells_it() {
        let adapter = adapter();
        let gpu = adapter.open().unwrap();
        if adapter.info().backend == "vulkan" {
            let memory = adapter.info().memory_bytes.unwrap();
            assert!(memory > 64 << 20);
            assert!(gpu.free_memory().is_none_or(|free| free > 0 && free <= 2 * memory), "{:?}", gpu.free_memory());
        }
    }

    /// Runs one ignored test of this file in a process of its own, with one environment variable set.
    fn in_child(test: &str, variable: &str, value: &str) {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("gpu::tests::{test}"), "--ignored", "--nocapture"])
            .env(variable, value)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{variable}={value}: {text}");
    }

    #[test]
    fn the_tier_variable_is_read_when_an_adapter_is_opened() {
        in_child("child_opens_at_base_tier", "RUNAHEAD_TIER", "base");
        in_child("child_is_refused_by_name_of_tier", "RUNAHEAD_TIER", "fastest");
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn child_opens_at_base_tier() {
        let gpu = gpu();
        assert_eq!(gpu.caps().tier, Tier::Base);
        assert!(gpu.pipeline(&double_spec()).is_ok());
        let f16 = ShaderSpec {
            name: "f16".to_owned(),
            header: "enable f16;\nalias elem = f32;\n".to_owned(),
            ..double_spec()
        };
        assert!(matches!(gpu.pipeline(&f16), Err(Error::Shader { .. })));
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn child_is_refused_by_name_of_tier() {
        assert!(matches!(adapter().open(), Err(Error::Unsupported { name, .. }) if name == "fastest"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn without_a_driver_there_are_no_adapters() {
        in_child("child_finds_nothing", "VK_DRIVER_FILES", "/dev/null/none.json");
        in_child("child_finds_nothing", "VK_ICD_FILENAMES", "/dev/null/none.json");
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn child_finds_nothing() {
        assert_eq!(enumerate().len(), 0);
    }
}
