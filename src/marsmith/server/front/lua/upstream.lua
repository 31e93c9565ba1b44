-- What a cluster does with a request and its reply. The lines before this file say it:
-- VERSION: the version to name; nil: none. PATH_VERSION: the same in a path. SHIELDED: name it in the first attempt
-- only, and ask for a second one if that failed.

-- Of the whole request, for the log: all attempts share it.
local STATE = "marsmith"
-- Of ModelInferResponse.
local OUTPUTS = 5

local function named_path(path)
  local name = string.match(path, "^/predictions/([^/?]+)")
    or string.match(path, "^/v1/models/([^/:?]+):predict")
    or string.match(path, "^/v2/models/([^/?]+)/infer")
  if not name then return path end
  return "/predictions/" .. name .. "/" .. PATH_VERSION .. (string.match(path, "%?.*$") or "")
end

-- gRPC handlers see no header: what marks a request goes into its message, as marsmith_handler.marks reads it.
local function marks(headers, path, bytes)
  local request_id, log = headers:get("x-request-id"), headers:get("x-marsmith-log")
  if not log or not request_id then return "" end
  if path == MODEL_INFER then
    local parsed, texts = pcall(texts_of, bytes)
    local own = parsed and texts[ID] or ""
    local mark = headers:get("x-marsmith-shadow") and "marsmith-shadow/" or "marsmith-log/"
    return text_field(ID, mark .. request_id .. "/" .. own)
  end
  local added = ""
  for _, name in ipairs({ "x-request-id", "x-marsmith-log", "x-marsmith-shadow" }) do
    local value = headers:get(name)
    if value then added = added .. text_field(INPUT, text_field(1, name) .. text_field(2, value)) end
  end
  return added
end

local function extend(handle, path, named)
  if not named and not handle:headers():get("x-marsmith-log") then return end
  local body = handle:body()
  local bytes = message_of(body)
  if not bytes then return end
  -- Headers from before body() are dead.
  local headers = handle:headers()
  local added = (named and text_field(VERSION_FIELD, VERSION) or "") .. marks(headers, path, bytes)
  body:setBytes(frame(#bytes - FRAME_BYTES + #added) .. string.sub(bytes, FRAME_BYTES + 1) .. added)
  headers:remove("content-length")
end

local function state_of(handle)
  return handle:streamInfo():dynamicMetadata()
end

-- When the second attempt began, in milliseconds after the first one: it tells a hang from a broken connection.
local function note_time(state, attempt, now)
  if attempt == "1" then return state:set(STATE, "began", now) end
  local known = state:get(STATE) or {}
  if known.began and not known.second_ms then state:set(STATE, "second_ms", now - known.began) end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local attempt = headers:get("x-envoy-attempt-count") or "1"
  local named = VERSION ~= nil and (attempt == "1" or not SHIELDED)
  -- Attempts share their headers: the second one gets what the first one has changed.
  local path = headers:get("x-marsmith-path") or headers:get(":path")
  local grpc = path == PREDICTIONS or path == MODEL_INFER
  local state = state_of(handle)
  state:set(STATE, "grpc", grpc and path or "")
  note_time(state, attempt, handle:timestamp())
  if grpc then return extend(handle, path, named) end
  headers:replace("x-marsmith-path", path)
  headers:replace(":path", named and named_path(path) or path)
end

-- The status of an item's error inside of a reply that gRPC calls OK; nil if there is none.
-- Our handlers write it as JSON with its keys in this order. A ModelInferResponse loses it and has no outputs.
local function item_error(handle, path)
  local bytes = message_of(handle:body())
  if not bytes then return nil end
  local parsed, texts = pcall(texts_of, bytes)
  if not parsed then return nil end
  if path == PREDICTIONS then
    return string.match(texts[NAME] or "", '^{"code": ([45]%d%d), "type": "[^"]*", "message": ".*"request_id": "')
  end
  return texts.highest < OUTPUTS and "500" or nil
end

local GRPC_FAILURES = { ["2"] = true, ["4"] = true, ["5"] = true, ["8"] = true, ["13"] = true, ["14"] = true }

local function failure_of(handle, path)
  local headers = handle:headers()
  local status = headers:get(":status")
  if path == "" then return status == "404" or string.sub(status, 1, 1) == "5", nil end
  local grpc_status = headers:get("grpc-status")
  if grpc_status then return GRPC_FAILURES[grpc_status] or false, nil end
  local item = item_error(handle, path)
  return item ~= nil and string.sub(item, 1, 1) == "5", item
end

-- Whether a second attempt is under way.
local function is_given_up(handle)
  return (state_of(handle):get(STATE) or {}).second_ms ~= nil
end

function envoy_on_response(handle)
  local known = state_of(handle):get(STATE)
  if not known then return end
  -- The way of second attempts says so: by now the state is that of the newest attempt.
  local first = SHIELDED and handle:headers():get("x-marsmith-second") == nil
  -- Who comes too late is not waited for. Envoy 1.40 crashes if it drops a reply whose body a filter has held.
  if first and is_given_up(handle) then return handle:headers():replace("x-marsmith-retry", "1") end
  local failed, item = failure_of(handle, known.grpc)
  -- Headers and state from before body() are dead.
  local headers = handle:headers()
  headers:remove("x-marsmith-second")
  if failed and first and not is_given_up(handle) then
    state_of(handle):set(STATE, "failed", true)
    headers:replace("x-marsmith-retry", "1")
  elseif item then
    state_of(handle):set(STATE, "item", item)
  end
end
