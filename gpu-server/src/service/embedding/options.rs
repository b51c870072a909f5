//! How embeddings are asked for: the wire's options, checked, and held against the model that answers.

use std::borrow::Cow;

use medkg_proto::v1::{self, DataType};

use super::super::validate::{self, TooLong};
use crate::engine::models::ReadyModel;
use crate::error::Error;

/// Options that make sense by themselves.
#[derive(Debug)]
pub struct Options {
    /// Element type of the answer.
    pub dtype: DataType,
    /// What happens to a text that is too long.
    pub too_long: TooLong,
    /// Elements that are kept; 0 for all.
    dimensions: usize,
    prompt: Wanted,
}

#[derive(Debug)]
enum Wanted {
    /// The model's default prompt.
    Default,
    /// The model's prompt of that name.
    Named(String),
    /// This text; an empty one stands for no prompt at all.
    Text(String),
}

impl Options {
    /// # Errors
    /// [`Error::InvalidField`] naming the option.
    pub fn read(options: v1::EmbeddingOptions) -> Result<Self, Error> {
        let dtype = DataType::try_from(options.dtype).map_err(|_| {
            let problem = format!("{} is not a DataType that this server knows", options.dtype);
            Error::invalid("options.dtype", problem)
        })?;
        let too_long = validate::too_long("options.truncation", options.truncation)?;
        let prompt = match options.instruction {
            Some(_) if !options.prompt_name.is_empty() => {
                let problem = "is given together with options.instruction; give one of them";
                return Err(Error::invalid("options.prompt_name", problem));
            }
            Some(instruction) => {
                validate::instruction("options.instruction", &instruction)?;
                Wanted::Text(instruction)
            }
            None if options.prompt_name.is_empty() => Wanted::Default,
            None => Wanted::Named(options.prompt_name),
        };
        Ok(Self {
            dtype,
            too_long,
            dimensions: options.dimensions as usize,
            prompt,
        })
    }

    /// What is put before each text; empty for nothing.
    ///
    /// # Errors
    /// [`Error::InvalidField`] with the names that the model knows.
    pub fn prompt(&self, model: &ReadyModel) -> Result<String, Error> {
        let prompts = &model.encoder.prompts;
        match &self.prompt {
            Wanted::Text(text) => Ok(text.clone()),
            // Reading the checkpoint has made sure that there is a prompt of that name.
            Wanted::Default => Ok(prompts
                .default
                .as_deref()
                .and_then(|name| prompts.get(name))
                .unwrap_or_default()
                .to_owned()),
            Wanted::Named(name) => prompts.get(name).map(str::to_owned).ok_or_else(|| {
                let known: Vec<&str> = prompts.iter().map(|(name, _)| name).collect();
                let known = if known.is_empty() {
                    Cow::Borrowed("it has none; give the words as options.instruction")
                } else {
                    Cow::Owned(format!("known: {}", known.join(", ")))
                };
                let name: String = name.chars().take(127).collect();
                Error::invalid(
                    "options.prompt_name",
                    format!("{name:?} is not a prompt of model {:?}; {known}", model.name),
                )
            }),
        }
    }

    /// Elements of each vector in the answer.
    ///
    /// # Errors
    /// [`Error::InvalidField`] where the model has fewer than are asked for.
    pub fn dimension(&self, model: &ReadyModel) -> Result<usize, Error> {
        match self.dimensions {
            0 => Ok(model.dimension),
            wanted if wanted > model.dimension => Err(Error::invalid(
                "options.dimensions",
                format!("is {wanted}; model {:?} has {}", model.name, model.dimension),
            )),
            wanted => Ok(wanted),
        }
    }
}
