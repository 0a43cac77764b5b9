//! Compiles the kernels of CUDA devices, if the feature `cuda` asks for them. Otherwise it does nothing.
//!
//! Each `src/compute/cuda/NAME.cu` becomes `NAME.fatbin`: machine code for the generations in [`CODE`], and PTX, which
//! drivers of later cards compile when the program starts.
//!
//! Codecs have their device text beside their Rust file: `src/kv/codec/NAME.cu`. Each becomes a kernel of the module
//! `codecs`, which is made of `src/compute/cuda/round_trip.cuh`, a template over the codec. A text for several codecs
//! begins with a line for each of them, such as `// codec mlx8: Mlx<8>`, and one that builds on another text names it:
//! `// after turbo`.
//!
//! Numbers that a kernel shares with its launch are stated in the kernel's file, in lines such as
//! `constexpr int THREADS = 256;  // for the launch`, and become constants of the crate in a module named by the file.

use std::path::{Path, PathBuf};
use std::process::Command;

const FOLDER: &str = "src/compute/cuda";
const CODECS: &str = "src/kv/codec";

/// What is generated: machine code of compute capability 8.0 and 9.0, and PTX of 9.0.
const CODE: [&str; 3] = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_90,code=compute_90",
];

/// If this variable holds a compute capability without its dot, such as `90`, machine code is generated for it alone.
/// That takes a third of the time, for development and for lints.
const ONLY: &str = "KVGATE_CUDA_ONLY";

/// The variables with which nvcc is given more arguments.
const FLAGS: [&str; 2] = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed={FOLDER}");
    println!("cargo::rerun-if-changed={CODECS}");
    for variable in ["CUDA_HOME", "CUDA_PATH", ONLY].into_iter().chain(FLAGS) {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    std::fs::write(out_dir().join("constants.rs"), constants()).expect("OUT_DIR can be written to");
    let mut files = kernels();
    files.push(codecs());
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    for files in files.chunks(threads) {
        std::thread::scope(|scope| {
            for file in files {
                scope.spawn(|| compile(file));
            }
        });
    }
}

/// The files with kernels, in a fixed order.
fn kernels() -> Vec<PathBuf> {
    let mut files = files_in(FOLDER);
    files.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    files
}

/// The files in a folder, in a fixed order.
fn files_in(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder can be read");
    let mut files: Vec<_> =
        entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    files.sort();
    files
}

/// The constants of all files that their launches share, one module for each file that has some.
fn constants() -> String {
    let mut modules = String::new();
    for path in files_in(FOLDER) {
        let is_kernel = path.extension().is_some_and(|kind| kind == "cu" || kind == "cuh");
        if !is_kernel {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("the text of a kernel can be read");
        let constants: String = text.lines().filter_map(constant).collect();
        if !constants.is_empty() {
            let name = path.file_stem().expect("a kernel has a name").display();
            modules += &format!("pub mod {name} {{\n{constants}}}\n");
        }
    }
    modules
}

/// The constant of a line that says it is for the launch.
fn constant(line: &str) -> Option<String> {
    let stated = line.strip_suffix("// for the launch")?;
    let parts = stated.trim().strip_prefix("constexpr int ").and_then(|x| x.strip_suffix(';'));
    let (name, number) = parts
        .and_then(|constant| constant.split_once(" = "))
        .filter(|(_, number)| number.bytes().all(|digit| digit.is_ascii_digit()))
        .unwrap_or_else(|| panic!("`{line}` is not `constexpr int NAME = NUMBER;`"));
    Some(format!("pub const {name}: usize = {number};\n"))
}

/// Writes the source of the kernels of all codecs, and the list of their names for the crate. Gives the source.
fn codecs() -> PathBuf {
    let mut texts = files_in(CODECS);
    texts.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    let mut source = String::from("#include \"prelude.cuh\"\n#include \"round_trip.cuh\"\n");
    let mut names = Vec::new();
    for path in texts {
        let stem = path.file_stem().expect("a text has a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("the text of a codec can be read");
        let lines =
            |start: &'static str| text.lines().filter_map(move |line| line.strip_prefix(start));
        let mut files: Vec<_> = lines("// after ").map(str::to_owned).collect();
        files.push(stem.clone());
        let variants: Vec<_> =
            lines("// codec ").filter_map(|line| line.split_once(": ")).collect();
        if variants.is_empty() {
            source += &codec_kernel(&stem, &files, None);
            names.push(stem);
        }
        for (name, which) in variants {
            source += &codec_kernel(name, &files, Some(which));
            names.push(name.to_owned());
        }
    }
    let out = out_dir();
    std::fs::write(out.join("codecs.rs"), format!("&{names:?}"))
        .expect("OUT_DIR can be written to");
    let file = out.join("codecs.cu");
    std::fs::write(&file, source).expect("OUT_DIR can be written to");
    file
}

/// The kernel of one codec: its texts in a namespace of their own, and the template over it.
fn codec_kernel(name: &str, files: &[String], which: Option<&str>) -> String {
    let symbol: String = name.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
    let texts: String = files.iter().map(|file| format!("#include \"{file}.cu\"\n")).collect();
    let which = which.map_or(String::new(), |which| format!("using Codec = {which};\n"));
    format!(
        "namespace codec_{symbol} {{\n{texts}{which}}}\n\
         extern \"C\" __global__ void __launch_bounds__(THREADS, 4) kv_round_trip_{symbol}(const RoundTrip task) {{\n\
         round_trip<codec_{symbol}::Codec>(task);\n}}\n"
    )
}

fn out_dir() -> PathBuf {
    std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR").into()
}

fn compile(file: &Path) {
    let out = out_dir();
    let stem = file.file_stem().expect("a kernel has a name");
    let target = out.join(stem).with_extension("fatbin");
    let mut nvcc = Command::new(nvcc());
    match std::env::var(ONLY) {
        Ok(only) => nvcc.arg(format!("-gencode=arch=compute_{only},code=sm_{only}")),
        Err(_) => nvcc.args(CODE),
    };
    nvcc.args(["-std=c++17", "-O3", "-fatbin", "-I", FOLDER, "-I", CODECS, "-o"]);
    nvcc.arg(&target).arg(file);
    if stem == "codecs" {
        // what is stored must have the bits that the CPU gives
        nvcc.args(["--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"]);
    }
    let made = target.with_extension("made-of");
    let inputs = inputs(file, &nvcc);
    if target.exists() && std::fs::read_to_string(&made).is_ok_and(|known| known == inputs) {
        return;
    }
    // whoever stops the build now must not leave code of one text beside the name of another
    let _ = std::fs::remove_file(&made);
    let status = nvcc.status().unwrap_or_else(|error| {
        panic!(
            "cannot start {}: {error}; the feature `cuda` needs CUDA's compiler: install the CUDA toolkit and set \
             CUDA_HOME, or run scripts/cuda-toolkit",
            nvcc.get_program().display()
        )
    });
    assert!(status.success(), "nvcc failed on {}", file.display());
    std::fs::write(made, inputs).expect("OUT_DIR can be written to");
}

/// All that the machine code of a file depends on. Compiling takes minutes, so what has not changed since the last time
/// is not compiled again.
fn inputs(file: &Path, nvcc: &Command) -> String {
    let mut files = files_in(FOLDER);
    files.retain(|path| path.extension().is_some_and(|extension| extension == "cuh"));
    if file.file_stem().is_some_and(|stem| stem == "codecs") {
        files.extend(
            files_in(CODECS).into_iter().filter(|path| path.extension() == Some("cu".as_ref())),
        );
    }
    files.push(file.into());
    let texts = files.iter().map(std::fs::read_to_string);
    let texts = texts.collect::<Result<String, _>>().expect("sources can be read");
    let version = Command::new(nvcc.get_program()).arg("--version").output();
    let version = version.map_or(Vec::new(), |output| output.stdout);
    let flags = FLAGS.map(std::env::var_os);
    format!("{nvcc:?} {flags:?} {}\n{texts}", String::from_utf8_lossy(&version))
}

/// CUDA's compiler: in the toolkit that CUDA_HOME or CUDA_PATH names, or the one in PATH.
fn nvcc() -> PathBuf {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let mut paths = homes.map(|home| Path::new(&home).join("bin/nvcc"));
    paths.find(|path| path.is_file()).unwrap_or_else(|| "nvcc".into())
}
