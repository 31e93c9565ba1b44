-- Which model a request is for, if it names no version, and by what it is drawn: headers that the routes read.
-- Only for models in MODELS (from the filter context): their requests are divided or copied now.

local function rest_model(path)
  local bare = string.match(path, "^[^?]*")
  return string.match(bare, "^/predictions/([^/]+)/?$")
    or string.match(bare, "^/v1/models/([^/:]+):predict$")
    or string.match(bare, "^/v2/models/([^/]+)/infer$")
end

-- The model that a message names first; nil if it begins with something else, or with a longer name. Fields may come in
-- any order, and almost always come in that of their numbers.
local function first_name(body)
  local bytes = body:getBytes(0, math.min(body:length(), 512))
  if string.byte(bytes, FRAME_BYTES + 1) ~= NAME * 8 + 2 then return nil end
  local length, at = read_varint(bytes, FRAME_BYTES + 2)
  local name = string.sub(bytes, at, at + length - 1)
  return #name == length and name or nil
end

-- Headers are dead after body() has waited: whoever calls this takes them anew.
local function grpc_model(handle, models)
  local body = handle:body()
  -- A large message for another model is not copied to be read.
  local known, first = pcall(first_name, body)
  if known and first and not models[first] then return nil end
  local bytes = message_of(body)
  if not bytes then return nil end
  local parsed, texts = pcall(texts_of, bytes)
  if not parsed or (texts[VERSION_FIELD] or "") ~= "" then return nil end
  return texts[NAME]
end

local function cookie(headers, name)
  for key, value in string.gmatch(headers:get("cookie") or "", "([^=;%s]+)=([^;]*)") do
    if key == name then return value end
  end
end

-- FNV-1a, 32 bits, http://www.isthe.com/chongo/tech/comp/fnv; 16777619 = 2^24 + 403 keeps products below 2^53.
local function hash(text, basis)
  for at = 1, #text do
    basis = bit.bxor(basis, string.byte(text, at)) % 4294967296
    basis = (basis % 256 * 16777216 + basis * 403) % 4294967296
  end
  return string.format("%08x", basis)
end

local function user(headers, sticky)
  local value
  if sticky.kind == "header" then value = headers:get(sticky.name) end
  if sticky.kind == "cookie" then value = cookie(headers, sticky.name) end
  -- The log must not have users by name.
  if value and value ~= "" then return hash(value, 2166136261) .. hash(value, 3203386110) end
end

function envoy_on_request(handle)
  local models = handle:filterContext():get("models") or {}
  local path = handle:headers():get(":path")
  local grpc = path == PREDICTIONS or path == MODEL_INFER
  local model
  if grpc then model = grpc_model(handle, models) else model = rest_model(path) end
  if not model or not models[model] then return end
  local headers = handle:headers()
  local request_id = headers:get("x-request-id") or ""
  headers:replace("x-marsmith-model", (grpc and "grpc/" or "rest/") .. model)
  headers:replace("x-marsmith-draw", user(headers, models[model]) or request_id)
  handle:clearRouteCache()
end
