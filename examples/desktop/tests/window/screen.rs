//! An X11 screen: presses keys and buttons, and looks at pixels.

use std::path::Path;
use std::time::Duration;

use x11rb::connection::Connection;
use x11rb::protocol::xproto::{
    BUTTON_PRESS_EVENT, BUTTON_RELEASE_EVENT, ConnectionExt as _, ImageFormat, InputFocus, KEY_PRESS_EVENT,
    KEY_RELEASE_EVENT, MOTION_NOTIFY_EVENT, Window,
};
use x11rb::protocol::xtest::ConnectionExt as _;
use x11rb::rust_connection::RustConnection;

/// What egui's dark theme fills bars with.
const BAR: [u8; 3] = [0, 92, 128];
/// Its colour of errors.
const RED: [u8; 3] = [255, 0, 0];
/// From one event of the mouse to the next: a frame has seen the one before.
const PAUSE: Duration = Duration::from_millis(60);

pub struct Screen {
    x11: RustConnection,
    root: Window,
    size: [u16; 2],
}

impl Screen {
    /// The screen that `DISPLAY` names, of which `size` is looked at.
    pub fn new(size: [u16; 2]) -> Self {
        let (x11, number) = x11rb::connect(None).unwrap();
        let root = x11.setup().roots[number].root;
        Self { x11, root, size }
    }

    fn event(&self, kind: u8, detail: u8, [x, y]: [u16; 2]) {
        self.x11.xtest_fake_input(kind, detail, 0, self.root, x as i16, y as i16, 0).unwrap().check().unwrap();
    }

    /// Presses the first button of the mouse at a place, and gives the window there the keys.
    pub fn click(&self, x: u16, y: u16) {
        self.event(MOTION_NOTIFY_EVENT, 0, [x, y]);
        std::thread::sleep(PAUSE);
        let child = self.x11.query_pointer(self.root).unwrap().reply().unwrap().child;
        assert_ne!(child, x11rb::NONE, "no window at {x}, {y}");
        self.x11.set_input_focus(InputFocus::PARENT, child, x11rb::CURRENT_TIME).unwrap().check().unwrap();
        for event in [BUTTON_PRESS_EVENT, BUTTON_RELEASE_EVENT] {
            self.event(event, 1, [x, y]);
            std::thread::sleep(PAUSE);
        }
    }

    /// Types small letters and spaces.
    pub fn write(&self, text: &str) {
        let setup = self.x11.setup();
        let (first, n) = (setup.min_keycode, setup.max_keycode - setup.min_keycode + 1);
        let map = self.x11.get_keyboard_mapping(first, n).unwrap().reply().unwrap();
        let row = usize::from(map.keysyms_per_keycode);
        for letter in text.bytes() {
            let key = map.keysyms.chunks(row).position(|syms| syms[0] == u32::from(letter)).unwrap();
            self.event(KEY_PRESS_EVENT, first + key as u8, [0, 0]);
            self.event(KEY_RELEASE_EVENT, first + key as u8, [0, 0]);
        }
    }

    /// What is on the screen now; kept as `NAME.png` for people.
    pub fn picture(&self, name: &str) -> Picture {
        std::thread::sleep(3 * PAUSE);
        let [width, height] = self.size;
        let image = self.x11.get_image(ImageFormat::Z_PIXMAP, self.root, 0, 0, width, height, !0).unwrap();
        let image = image.reply().unwrap().data;
        // Blue, green, red and a byte more.
        let pixels: Vec<[u8; 3]> = image.chunks_exact(4).map(|p| [p[2], p[1], p[0]]).collect();
        assert_eq!(pixels.len(), usize::from(width) * usize::from(height), "a screen of 24 bits");
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png"));
        let [width32, height32] = self.size.map(u32::from);
        image::save_buffer(path, pixels.as_flattened(), width32, height32, image::ColorType::Rgb8).unwrap();
        Picture { pixels, width: usize::from(width) }
    }
}

pub struct Picture {
    pixels: Vec<[u8; 3]>,
    width: usize,
}

impl Picture {
    fn inside(&self, [left, top, right, bottom]: [u16; 4]) -> Vec<[u8; 3]> {
        let rows = self.pixels.chunks(self.width).take(bottom.into()).skip(top.into());
        rows.flat_map(|row| &row[left.into()..usize::from(right).min(self.width)]).copied().collect()
    }

    fn share(&self, area: [u16; 4], is: impl Fn([u8; 3]) -> bool) -> f64 {
        let pixels = self.inside(area);
        pixels.iter().filter(|&&p| is(p)).count() as f64 / pixels.len().max(1) as f64
    }

    /// The share of an area that has the colour of a bar.
    pub fn filled(&self, area: [u16; 4]) -> f64 {
        self.share(area, |p| near(p, BAR))
    }

    pub fn has_red(&self, area: [u16; 4]) -> bool {
        self.share(area, |p| near(p, RED)) > 0.0005
    }

    /// Whether the middle of an area, without its frame, has letters: pixels far from the colour of most.
    pub fn has_writing(&self, [left, top, right, bottom]: [u16; 4]) -> bool {
        let middle = [left + 2, top + 2, right - 2, bottom - 2];
        let mut seen = self.inside(middle);
        seen.sort_unstable();
        let ground = seen.chunk_by(|a, b| a == b).max_by_key(|same| same.len()).map(|same| same[0]).unwrap();
        let ink = self.share(middle, |p| p.iter().zip(ground).any(|(&a, b)| a.abs_diff(b) > 40));
        ink > 0.002 && ink < 0.5
    }
}

fn near(a: [u8; 3], b: [u8; 3]) -> bool {
    a.iter().zip(b).all(|(&a, b)| a.abs_diff(b) < 24)
}
