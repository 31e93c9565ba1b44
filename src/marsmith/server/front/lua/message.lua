-- Messages of gRPC and protobuf as bytes.
-- PredictionsRequest and ModelInferRequest both have the model's name and version as fields 1 and 2; field 3 is the map
-- of inputs of the one, and the id of the other.

local PREDICTIONS = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
local MODEL_INFER = "/org.pytorch.serve.grpc.openinference.GRPCInferenceService/ModelInfer"
local NAME, VERSION_FIELD, INPUT, ID = 1, 2, 3, 3
local FRAME_BYTES = 5

local function read_varint(bytes, at)
  local value, factor = 0, 1
  repeat
    local byte = string.byte(bytes, at)
    at = at + 1
    value = value + (byte % 128) * factor
    factor = factor * 128
  until byte < 128
  return value, at
end

local function varint(value)
  local bytes = ""
  while value >= 128 do
    bytes = bytes .. string.char(value % 128 + 128)
    value = math.floor(value / 128)
  end
  return bytes .. string.char(value)
end

local function text_field(number, text)
  return varint(number * 8 + 2) .. varint(#text) .. text
end

-- The short texts among the fields at the top, by number, and the highest number of any text or message there.
-- Protobuf lets the last value win.
local function texts_of(bytes)
  local found, at = { highest = 0 }, FRAME_BYTES + 1
  while at <= #bytes do
    local key, length
    key, at = read_varint(bytes, at)
    local wire = key % 8
    if wire == 2 then
      length, at = read_varint(bytes, at)
      local number = (key - wire) / 8
      -- Long ones are tensors and pictures.
      if length <= 16384 then found[number] = string.sub(bytes, at, at + length - 1) end
      found.highest = math.max(found.highest, number)
      at = at + length
    elseif wire == 0 then
      length, at = read_varint(bytes, at)
    elseif wire == 1 then
      at = at + 8
    elseif wire == 5 then
      at = at + 4
    else
      error("a wire type that proto3 does not have")
    end
  end
  return found
end

-- A gRPC message with this many bytes, in the frame that says so; the flag is 0: not compressed.
local function frame(length)
  return string.char(
    0,
    math.floor(length / 16777216) % 256,
    math.floor(length / 65536) % 256,
    math.floor(length / 256) % 256,
    length % 256
  )
end

-- The whole body as bytes; nil if there is none, or if it is compressed, or holds anything but one message.
local function message_of(body)
  if not body or body:length() < FRAME_BYTES then return nil end
  local bytes = body:getBytes(0, body:length())
  if string.sub(bytes, 1, FRAME_BYTES) ~= frame(#bytes - FRAME_BYTES) then return nil end
  return bytes
end
