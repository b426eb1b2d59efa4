export {
  extractFeatures,
  type FeaturesOptions,
  type FeaturesProgress,
  type FeaturesResult,
} from './data/features.js'
export type { SkippedItem, TrainingData, TrainingItem } from './data/types.js'
export type { DeviceInfo } from './devices.js'
export { type DenoiseOptions, DiT } from './dit.js'
export { DiTError, type DiTErrorCode } from './errors.js'
export type {
  ImagesEvent,
  LatentsEvent,
  PreviewEvent,
  ProgressEvent,
  Timings,
} from './events.js'
export type {
  DiTConfig,
  DiTConfigInput,
  LoadProgress,
  ScheduleConfig,
  VaeConfig,
  WeightsChoice,
} from './formats/types.js'
export { imageGrid, type Pixels, RawImage } from './image.js'
export type { ClassNames, Label } from './labels.js'
export type { SourceInfo } from './loading.js'
export type { MemoryInfo, ModelStats } from './model_info.js'
export type {
  BatchOptions,
  CreateOptions,
  DecodeOptions,
  Device,
  EncodeOptions,
  LoadOptions,
  ModelProgress,
  Output,
  Precision,
  PreviewOptions,
  ProcessOptions,
  SampleOptions,
  SaveOptions,
  Seed,
} from './options.js'
export type { SampleSetOptions, SampleSetProgress } from './samples/facts.js'
export { type SampleSetResult, sampleSet } from './samples/set.js'
export type { Latents } from './sampling.js'
export type { StreamEvent } from './streaming.js'
export type { Tensor } from './tensor.js'
export type {
  CheckpointEvent,
  RollbackEvent,
  SamplesEvent,
  SkippedItemsEvent,
  StartEvent,
  StepEvent,
  TrainEvent,
  WarningEvent,
} from './train/events.js'
export type {
  LearningRateSchedule,
  SampleGridOptions,
  TrainerOptions,
  TrainOptions,
} from './train/options.js'
export type { StepInput, StepMetrics, Trainer } from './train/trainer.js'
