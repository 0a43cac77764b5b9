//! Tests of numbers and of files: codecs, checkpoints, tokenizers, and what the engine measures with them.

mod blocks;
mod chat;
mod codecs;
mod configurations;
mod decoder;
mod embedded;
mod explaining;
mod families;
mod gguf_parts;
mod keys;
mod measuring;
mod packed;
mod quantized;
mod real_configurations;
mod retrieval;
mod safetensors;
mod second_opinion;
mod suggesting;
mod support;
mod tokenizer;
mod vocabulary;
