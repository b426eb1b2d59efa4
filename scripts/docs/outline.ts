// Which page says what. An entry point that is not named here has one page, in the order of its exports.

export interface Page {
  /** In docs/api. */
  file: string
  title: string
  intro: string
  /** Exports, in this order. */
  names: readonly string[]
}

/** Pages of each import path. */
export const outline: Record<string, readonly Page[]> = {
  'dit-native': [
    {
      file: 'model.md',
      title: 'The model',
      intro:
        'Loading, making, saving and closing a model, and what is known of it; all calls of the class `DiT`.',
      names: [
        'DiT',
        'LoadOptions',
        'CreateOptions',
        'BatchOptions',
        'SaveOptions',
        'Device',
        'Precision',
        'DeviceInfo',
        'WeightsChoice',
        'ModelProgress',
        'LoadProgress',
        'DiTConfig',
        'DiTConfigInput',
        'ScheduleConfig',
        'VaeConfig',
        'SourceInfo',
        'MemoryInfo',
        'ModelStats',
        'ClassNames',
      ],
    },
    {
      file: 'sampling.md',
      title: 'Sampling and images',
      intro:
        'Options and results of `dit.sample`, `dit.stream`, `dit.denoise`, `dit.decode` and `dit.encode`; images and tensors.',
      names: [
        'Label',
        'SampleOptions',
        'ProcessOptions',
        'PreviewOptions',
        'Seed',
        'Output',
        'StreamEvent',
        'ProgressEvent',
        'PreviewEvent',
        'ImagesEvent',
        'LatentsEvent',
        'Timings',
        'Latents',
        'DenoiseOptions',
        'DecodeOptions',
        'EncodeOptions',
        'RawImage',
        'Pixels',
        'imageGrid',
        'Tensor',
      ],
    },
    {
      file: 'sample-sets.md',
      title: 'Many samples in one file',
      intro: 'Images to measure a model by, made by any number of processes; `dit sample --count`.',
      names: ['sampleSet', 'SampleSetOptions', 'SampleSetProgress', 'SampleSetResult'],
    },
    {
      file: 'training.md',
      title: 'Training',
      intro:
        'Options and events of `dit.train`, the step-by-step form of `dit.trainer`, and features of a VAE to train on.',
      names: [
        'TrainingData',
        'TrainingItem',
        'SkippedItem',
        'TrainOptions',
        'TrainerOptions',
        'LearningRateSchedule',
        'SampleGridOptions',
        'TrainEvent',
        'StartEvent',
        'StepEvent',
        'CheckpointEvent',
        'SamplesEvent',
        'RollbackEvent',
        'WarningEvent',
        'SkippedItemsEvent',
        'Trainer',
        'StepInput',
        'StepMetrics',
        'extractFeatures',
        'FeaturesOptions',
        'FeaturesProgress',
        'FeaturesResult',
      ],
    },
    {
      file: 'errors.md',
      title: 'Errors',
      intro: 'How calls fail.',
      names: ['DiTError', 'DiTErrorCode'],
    },
  ],
}

/** What an object of a class is called in headings: `dit.sample`. */
export const instances: Record<string, string> = {
  DiT: 'dit',
  Trainer: 'trainer',
  RawImage: 'image',
  DiTError: 'error',
}
